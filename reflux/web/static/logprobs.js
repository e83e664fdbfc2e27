// Log-probabilities as shading: the less likely a token, the stronger its background.

import { el } from "./dom.js";

const percent = (logprob) => `${(Math.exp(logprob) * 100).toFixed(logprob > -0.01 ? 2 : 1)}%`;

// `logprobs`: [token, log-probability, [[alternative, log-probability], …]] in order.
export function shaded(logprobs) {
  const text = el("div", { class: "text shaded" }, logprobs.map(([token, logprob, others]) => {
    const alternatives = (others || []).filter(([other]) => other !== token).slice(0, 4).map(([other, p]) => `${JSON.stringify(other)} ${percent(p)}`);
    const span = el("span", { title: [percent(logprob), ...alternatives].join("\n") }, token);
    span.style.setProperty("--doubt", `${Math.round(Math.min(1, -logprob / 2.5) * 40)}%`);
    return span;
  }));
  const lowest = logprobs.reduce((low, each) => (each[1] < low[1] ? each : low));
  return el("div", {}, text, el("p", { class: "dim small" }, `lowest probability: ${JSON.stringify(lowest[0])}, ${percent(lowest[1])}`));
}
