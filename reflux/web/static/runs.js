// Rounds: accuracy of every system against level, gates, and cost.

import { json } from "./api.js";
import { el, empty, number, seconds, show } from "./dom.js";
import { levelChart, levelRows, levelSeries, levelTable, unitOf } from "./level_chart.js";
import { fixed, interval, table } from "./tables.js";

export async function open(container) {
  const body = el("div", { class: "column" });
  show(container, el("div", { class: "scroll" }, body));
  const { report, name, agent } = await json("/api/run");
  const rounds = report?.rounds || [];
  if (!rounds.length) {
    show(body, empty("No rounds yet", "`reflux run` and `reflux demo` write a report here. Questions from the chat are under Trajectories."));
    return;
  }
  const series = levelSeries(levelRows(report)), unit = unitOf(report);
  const plot = el("div", {});
  show(body,
    series.length > 0 && el("div", { class: "card" },
      el("h2", {}, `Accuracy against ${unit}: ${report.run || name}`),
      el("p", { class: "dim" }, `Held-out questions of ${report.task}, 95% intervals. Base and students answer in one call. The agent is ${agent}.`),
      plot,
      levelTable(series, unit)),
    el("div", { class: "card" }, el("h2", {}, "Rounds"), accuracies(rounds)),
    rounds.some((round) => round.overseers?.length) && el("div", { class: "card" },
      el("h2", {}, "Learned overseer"), overseers(rounds), asked(report.overseer_calls || [])),
    el("div", { class: "card" }, el("h2", {}, "Cost"), costs(rounds)),
    report.models?.length ? el("div", { class: "card" }, el("h2", {}, "Models"), spending(report.models)) : null);
  if (!series.length) return undefined;
  const draw = () => show(plot, levelChart(series, Math.min(980, plot.clientWidth), unit));
  const observer = new ResizeObserver(draw);
  observer.observe(plot.parentElement);
  return () => observer.disconnect();
}

const share = (value, ci95) => el("span", {}, fixed(value), el("span", { class: "dim small" }, ` ${interval(ci95)}`));

// Without true answers: the share of answers that pass the check.
function accuracy(score) {
  if (score?.accuracy != null) return share(score.accuracy, score.ci95);
  return score?.passed ? el("span", {}, share(score.passed.share, score.passed.ci95), el("span", { class: "dim small" }, " pass the check")) : "–";
}

function accuracies(rounds) {
  const agree = rounds.some((round) => round.agreement);
  return table(["round", "level", "agent", "base", "amplified", "student", ...(agree ? ["student = amplified"] : []), "gates", ""], rounds.map((round) => [
    number(round.round), number(round.level), round.agent, accuracy(round.direct), accuracy(round.amplified), accuracy(round.student),
    ...(agree ? [round.agreement ? share(round.agreement.share, round.agreement.ci95) : "–"] : []), gates(round.gates || []),
    round.promoted ? el("span", { class: "badge ok" }, "promoted") : el("span", { class: "badge rejected" }, "not promoted"),
  ]));
}

function gates(all) {
  const failed = all.filter((gate) => !gate.passed).map((gate) => gate.name);
  return failed.length ? el("span", { class: "bad" }, `failed: ${failed.join(", ")}`) : "passed";
}

// What divides: the overseer of each round, and how often the original one was asked.
function overseers(rounds) {
  return table(["overseer", "demonstrations and trees", "rows", "gates", ""], rounds.flatMap((round) => round.overseers || []).map((one) => [
    one.id, number(one.demonstrations), number(one.rows), gates(one.gates),
    one.promoted ? el("span", { class: "badge ok" }, "promoted") : el("span", { class: "badge rejected" }, one.note || "not promoted"),
  ]));
}

function asked(calls) {
  return calls.length > 0 && table(["round", "calls to the original overseer", "to the learned one"], calls.map((row) => [
    number(row.round), number(row.original), number(row.learned),
  ]));
}

const each = (score, field) => (score ? fixed(score[field] / score.n, field === "calls" ? 2 : 0) : "–");

function costs(rounds) {
  return table(["round", "calls per question: amplified", "student", "tokens per question: amplified", "student", "amplification", "rows", "training"], rounds.map((round) => [
    number(round.round), each(round.amplified, "calls"), each(round.student, "calls"), each(round.amplified, "tokens"), each(round.student, "tokens"),
    round.amplify ? `${number(round.amplify.calls)} calls, ${seconds(round.amplify.seconds)}` : "–",
    number(round.trained_rows ?? round.rows), round.train_seconds ? seconds(round.train_seconds) : "–",
  ]));
}

// A model without a price has no cost.
function spending(models) {
  return table(["model", "calls", "cached", "tokens", "cost"], models.map((model) => [
    model.model, number(model.calls), `${Math.round(100 * model.cached / Math.max(1, model.calls))}%`, number(model.tokens), model.cost === null ? "–" : fixed(model.cost, 4),
  ]));
}
