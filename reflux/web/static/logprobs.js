// Log-probabilities as shading: the less likely a token was, the stronger its ground.

import { el } from "./dom.js";

const percent = (logprob) => `${(Math.exp(logprob) * 100).toFixed(logprob > -0.01 ? 2 : 1)}%`;

// `logprobs` are [token, log-probability, [[other token, log-probability], …]] in their order.
export function shaded(logprobs) {
  const text = el("div", { class: "text shaded" }, logprobs.map(([token, logprob, others]) => {
    const rivals = (others || []).filter(([other]) => other !== token).slice(0, 4).map(([other, p]) => `${JSON.stringify(other)} ${percent(p)}`);
    const piece = el("span", { title: [percent(logprob), ...rivals].join("\n") }, token);
    piece.style.setProperty("--doubt", `${Math.round(Math.min(1, -logprob / 2.5) * 70)}%`);
    return piece;
  }));
  const least = logprobs.reduce((worst, each) => (each[1] < worst[1] ? each : worst));
  return el("div", {}, text, el("p", { class: "dim small" }, `least certain: ${JSON.stringify(least[0])}, ${percent(least[1])}`));
}
