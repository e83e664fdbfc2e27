// Evaluations: the systems compared, and the wrong answers with their trees.

import { json } from "./api.js";
import { attempt, el, empty, number, seconds, show, when } from "./dom.js";
import { jobPanel } from "./job.js";
import { statusWord } from "./status.js";
import { fixed, gauge, interval, table } from "./tables.js";
import { TreeModel } from "./tree_model.js";
import { TreeView } from "./tree_view.js";

export async function open(container, [chosen]) {
  const body = el("div", { class: "column" });
  const results = el("div", {});
  show(container, el("div", { class: "scroll" }, body));
  const refresh = async (name) => {
    const { evaluations } = await json("/api/evaluations");
    draw(results, evaluations, name);
  };
  const panel = await jobPanel("evaluation", (job) => attempt(() => refresh(job.name)));
  show(body, panel.element, results);
  await refresh(chosen);
  return panel.close;
}

function draw(container, evaluations, chosen) {
  if (!evaluations.length) {
    show(container, empty("No evaluations yet", "Start one above, or run `reflux eval --out` with a folder inside this run."));
    return;
  }
  const one = evaluations.find(({ name }) => name === chosen) || evaluations[0];
  const select = el("select", { "aria-label": "Evaluation", onchange: () => draw(container, evaluations, select.value) },
    evaluations.map(({ name, created }) => el("option", { value: name, selected: name === one.name }, `${name} · ${when(created)}`)));
  const failures = el("div", { class: "failures" });
  if (one.error) {
    show(container, el("div", { class: "card" }, el("div", { class: "row between" }, el("h2", {}, one.name), select), el("p", { class: "bad text" }, one.error)));
    return;
  }
  show(container,
    el("div", { class: "card" },
      el("div", { class: "row between" }, el("h2", {}, "Systems compared"), select),
      el("p", { class: "dim" }, el("bdi", {}, one.eval_task), `, ${one.split} questions, scored by ${one.score}; 95% intervals.`),
      systems(one)),
    one.differences.length ? el("div", { class: "card" }, el("h2", {}, "Differences on the same questions"), differences(one)) : "",
    el("div", { class: "card" }, el("h2", {}, "Failures"), tabs(one, failures), failures));
}

const color = (key) => (key === "amplified" ? "s-amplified" : key.startsWith("student") ? "s-student" : "s-base");

function systems(one) {
  return table(["system", "accuracy", "", "95%", "n", "calls", "tokens", "time", "cost"], Object.entries(one.systems).map(([key, s]) => [
    el("span", {}, key, s.model !== key ? el("span", { class: "dim small" }, ` ${s.model}`) : ""),
    fixed(s.accuracy), gauge(s.accuracy, s.ci95, color(key)), interval(s.ci95), number(s.n), number(s.calls), number(s.tokens),
    seconds(s.seconds), s.cost === null ? "–" : s.cost.toPrecision(3),
  ]));
}

function differences(one) {
  return table(["systems", "difference", "95%", "p (McNemar)", "only first correct", "only second correct"], one.differences.map((d) => [
    `${d.first} − ${d.second}`, `${d.value > 0 ? "+" : ""}${fixed(d.value)}`, interval(d.ci95), d.p < 0.001 ? "< 0.001" : fixed(d.p), number(d.only_first), number(d.only_second),
  ]));
}

function tabs(one, list) {
  const buttons = Object.keys(one.systems).map((key) => el("button", { type: "button", "aria-pressed": false, onclick: (event) => {
    buttons.forEach((each) => each.setAttribute("aria-pressed", each === event.currentTarget));
    show(list);
    attempt(() => page(one, key, list, 0));
  } }, key));
  queueMicrotask(() => buttons[0]?.click());
  return el("div", { class: "chips", role: "group", "aria-label": "System" }, buttons);
}

async function page(one, system, list, after) {
  const query = new URLSearchParams({ system, after });
  const { failures, next } = await json(`/api/evaluations/${encodeURIComponent(one.name)}/failures?${query}`);
  list.querySelector(".more")?.remove();
  if (!failures.length && !after) show(list, el("p", { class: "dim" }, "Every answer is correct."));
  list.append(...failures.map(failure));
  if (next !== null) list.append(el("button", { type: "button", class: "quiet more", onclick: () => attempt(() => page(one, system, list, next)) }, "More"));
}

function failure(answer) {
  const tree = el("div", { class: "inner" });
  const open = async () => {
    const body = await json(`/api/trajectories/${encodeURIComponent(answer.trajectory)}`);
    new TreeView(tree, body.trajectory, TreeModel.from(body.tree));
  };
  return el("details", { class: "call", ontoggle: (event) => { if (event.currentTarget.open && !tree.firstChild) attempt(open); } },
    el("summary", {}, el("span", { class: "text strong" }, answer.question), el("span", { class: "text" }, answer.answer ?? statusWord(answer.status)),
      el("span", { class: "dim text" }, `expected ${(answer.expected || []).join(" or ")}`)),
    tree);
}
