// Rounds: accuracy of direct, amplified and student with their intervals, and what they cost.

import { json } from "./api.js";
import { el, empty, number, seconds, show, svg } from "./dom.js";
import { fixed, interval, table } from "./tables.js";

const SYSTEMS = [["direct", "base, one call", "s-base"], ["amplified", "amplified: H with copies of X", "s-amplified"], ["student", "student, one call", "s-student"]];

export async function open(place) {
  const body = el("div", { class: "column" });
  show(place, el("div", { class: "scroll" }, body));
  const { report, name, agent } = await json("/api/run");
  const rounds = report?.rounds || [];
  if (!rounds.length) {
    show(body, empty("No rounds yet", "`reflux run`, `init` and `demo` write a report here. What is asked in the chat is under Trajectories."));
    return;
  }
  const drawn = el("div", {});
  show(body,
    el("div", { class: "card" },
      el("h2", {}, `Accuracy by round: ${name}`),
      el("p", { class: "dim" }, `Held-out questions of ${report.task}, 95% intervals; the agent is ${agent}.`),
      drawn,
      el("div", { class: "row legend" }, SYSTEMS.map(([, label, colour]) => el("span", {}, el("i", { class: `swatch ${colour}` }), label)))),
    el("div", { class: "card" }, el("h2", {}, "Rounds"), accuracies(rounds)),
    el("div", { class: "card" }, el("h2", {}, "Cost"), costs(rounds)));
  const draw = () => show(drawn, chart(rounds, Math.min(980, drawn.clientWidth)));
  const sized = new ResizeObserver(draw);
  sized.observe(drawn.parentElement);
  return () => sized.disconnect();
}

function chart(rounds, width) {
  const height = 260, left = 40, right = 16, top = 12, bottom = 32;
  const x = (at) => left + ((at + 0.5) / rounds.length) * (width - left - right);
  const y = (value) => top + (1 - value) * (height - top - bottom);
  const parts = [0, 0.25, 0.5, 0.75, 1].flatMap((value) => [
    svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }),
    svg("text", { x: left - 8, y: y(value) + 4, class: "tick end" }, value.toFixed(2)),
  ]);
  rounds.forEach((round, at) => parts.push(svg("text", { x: x(at), y: height - 12, class: "tick middle" }, width < 130 * rounds.length ? `r${round.round}, level ${round.level}` : `round ${round.round}, level ${round.level}`)));
  SYSTEMS.forEach(([key, label, colour], offset) => {
    const points = rounds.flatMap((round, at) => (round[key] ? [[x(at) + (offset - 1) * 12, round[key], round]] : []));
    parts.push(svg("polyline", { points: points.map(([px, score]) => `${px},${y(score.accuracy)}`).join(" "), class: `series ${colour}` }));
    for (const [px, score, round] of points) {
      parts.push(svg("line", { x1: px, x2: px, y1: y(score.ci95[0]), y2: y(score.ci95[1]), class: `error ${colour}` }));
      parts.push(svg("circle", { cx: px, cy: y(score.accuracy), r: 5, class: `point ${colour}` }, svg("title", {}, `${label}, round ${round.round}: ${fixed(score.accuracy)} (${interval(score.ci95)}), n = ${score.n}`)));
    }
  });
  return svg("svg", { class: "chart", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Accuracy of base, amplified and student in each round; the table below has the figures" }, parts);
}

const accuracy = (score) => (score ? el("span", {}, fixed(score.accuracy), el("span", { class: "dim small" }, ` ${interval(score.ci95)}`)) : "–");

function accuracies(rounds) {
  return table(["round", "level", "X", "base", "amplified", "student", "gates", ""], rounds.map((round) => [
    number(round.round), number(round.level), round.agent, accuracy(round.direct), accuracy(round.amplified), accuracy(round.student),
    (round.gates || []).every((gate) => gate.passed) ? "passed" : el("span", { class: "bad" }, (round.gates || []).filter((gate) => !gate.passed).map((gate) => gate.name).join(", ")),
    round.promoted ? el("span", { class: "badge ok" }, "promoted") : el("span", { class: "badge rejected" }, "not promoted"),
  ]));
}

const each = (score, field) => (score ? fixed(score[field] / score.n, field === "calls" ? 2 : 0) : "–");

function costs(rounds) {
  return table(["round", "calls a question: amplified", "student", "tokens a question: amplified", "student", "amplifying", "rows", "training"], rounds.map((round) => [
    number(round.round), each(round.amplified, "calls"), each(round.student, "calls"), each(round.amplified, "tokens"), each(round.student, "tokens"),
    round.amplify ? `${number(round.amplify.calls)} calls, ${seconds(round.amplify.seconds)}` : "–",
    number(round.trained_rows ?? round.rows), round.train_seconds ? seconds(round.train_seconds) : "–",
  ]));
}
