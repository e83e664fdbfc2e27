// Evaluations: systems side by side, and what each got wrong with its trees.

import { json } from "./api.js";
import { attempt, el, empty, number, seconds, show, when } from "./dom.js";
import { jobPanel } from "./job.js";
import { fixed, gauge, interval, table } from "./tables.js";
import { TreeModel } from "./tree_model.js";
import { TreeView } from "./tree_view.js";

export async function open(place, [chosen]) {
  const body = el("div", { class: "column" });
  const shown = el("div", {});
  show(place, el("div", { class: "scroll" }, body));
  const refresh = async (name) => {
    const { evaluations } = await json("/api/evaluations");
    draw(shown, evaluations, name);
  };
  const panel = await jobPanel("evaluation", (job) => attempt(() => refresh(job.name)));
  show(body, panel.element, shown);
  await refresh(chosen);
  return panel.close;
}

function draw(place, evaluations, chosen) {
  if (!evaluations.length) {
    show(place, empty("No evaluation yet", "Start one above, or run `reflux eval --out` into a folder of this run."));
    return;
  }
  const one = evaluations.find(({ name }) => name === chosen) || evaluations[0];
  const select = el("select", { "aria-label": "Evaluation", onchange: () => draw(place, evaluations, select.value) },
    evaluations.map(({ name, created }) => el("option", { value: name, selected: name === one.name }, `${name} · ${when(created)}`)));
  const failures = el("div", { class: "failures" });
  if (one.error) {
    show(place, el("div", { class: "card" }, el("div", { class: "row between" }, el("h2", {}, one.name), select), el("p", { class: "bad text" }, one.error)));
    return;
  }
  show(place,
    el("div", { class: "card" },
      el("div", { class: "row between" }, el("h2", {}, "Systems side by side"), select),
      el("p", { class: "dim" }, el("bdi", {}, one.eval_task), `, ${one.split} questions, right by ${one.score}; 95% intervals.`),
      systems(one)),
    one.differences.length ? el("div", { class: "card" }, el("h2", {}, "Differences on the same questions"), differences(one)) : "",
    el("div", { class: "card" }, el("h2", {}, "Failures"), tabs(one, failures), failures));
}

const colour = (key) => (key === "amplified" ? "s-amplified" : key.startsWith("student") ? "s-student" : "s-base");

function systems(one) {
  return table(["system", "accuracy", "", "95%", "n", "calls", "tokens", "time", "cost"], Object.entries(one.systems).map(([key, s]) => [
    el("span", {}, key, s.model !== key ? el("span", { class: "dim small" }, ` ${s.model}`) : ""),
    fixed(s.accuracy), gauge(s.accuracy, s.ci95, colour(key)), interval(s.ci95), number(s.n), number(s.calls), number(s.tokens),
    seconds(s.seconds), s.cost === null ? "–" : s.cost.toPrecision(3),
  ]));
}

function differences(one) {
  return table(["systems", "difference", "95%", "McNemar's p", "only first right", "only second"], one.differences.map((d) => [
    `${d.first} − ${d.second}`, `${d.value > 0 ? "+" : ""}${fixed(d.value)}`, interval(d.ci95), d.p < 0.001 ? "< 0.001" : fixed(d.p), number(d.only_first), number(d.only_second),
  ]));
}

function tabs(one, place) {
  const buttons = Object.keys(one.systems).map((key) => el("button", { type: "button", "aria-pressed": false, onclick: (event) => {
    buttons.forEach((each) => each.setAttribute("aria-pressed", each === event.currentTarget));
    show(place);
    attempt(() => page(one, key, place, 0));
  } }, key));
  queueMicrotask(() => buttons[0]?.click());
  return el("div", { class: "chips", role: "group", "aria-label": "System" }, buttons);
}

async function page(one, system, place, after) {
  const asked = new URLSearchParams({ system, after });
  const { failures, next } = await json(`/api/evaluations/${encodeURIComponent(one.name)}/failures?${asked}`);
  place.querySelector(".more")?.remove();
  if (!failures.length && !after) show(place, el("p", { class: "dim" }, "Every answer was right."));
  place.append(...failures.map(failure));
  if (next !== null) place.append(el("button", { type: "button", class: "quiet more", onclick: () => attempt(() => page(one, system, place, next)) }, "More"));
}

function failure(answer) {
  const tree = el("div", { class: "inner" });
  const open = async () => {
    const found = await json(`/api/trajectories/${encodeURIComponent(answer.trajectory)}`);
    new TreeView(tree, found.trajectory, TreeModel.from(found.tree));
  };
  return el("details", { class: "call", ontoggle: (event) => { if (event.currentTarget.open && !tree.firstChild) attempt(open); } },
    el("summary", {}, el("span", { class: "text strong" }, answer.question), el("span", { class: "text" }, answer.answer ?? answer.status.replace("_", " ")),
      el("span", { class: "dim text" }, `expected ${(answer.expected || []).join(" or ")}`)),
    tree);
}
