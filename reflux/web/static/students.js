// The students: who is the agent, who came of whom, with what scores; promote and roll back.

import { json } from "./api.js";
import { attempt, confirmed, el, empty, number, show, toast } from "./dom.js";
import { jobPanel } from "./job.js";

export async function open(place) {
  const body = el("div", {});
  const refresh = async () => draw(body, await json("/api/students"), refresh);
  const panel = await jobPanel("distillation", () => attempt(refresh));
  show(place, el("div", { class: "scroll" }, el("div", { class: "column" }, body, panel.element)));
  await refresh();
  return panel.close;
}

function draw(body, { current, students }, refresh) {
  if (!students.length) {
    show(body, empty("No students yet", "A round of `reflux run`, or a distillation started below, makes the first one."));
    return;
  }
  const turn = async (path, words) => attempt(async () => {
    await json(path, { method: "POST" });
    toast(words);
    await refresh();
  });
  const promote = async (id) => {
    if (await confirmed(`Make ${id} the agent? Whoever asks next is answered by it.`, "Promote")) await turn(`/api/students/${encodeURIComponent(id)}/promote`, `${id} is the agent now`);
  };
  const rollback = async () => {
    if (await confirmed(`Take ${current} back, and make the agent before it the agent again?`, "Roll back")) await turn("/api/students/rollback", "Rolled back");
  };
  show(body,
    el("div", { class: "row between above" },
      el("p", {}, "The agent is ", el("span", { class: "strong" }, current || "the untrained base"), "."),
      current ? el("button", { type: "button", onclick: rollback }, "Roll back") : ""),
    el("ul", { class: "lineage" }, lineage(students).map(([student, depth]) => {
      const item = el("li", { class: "card student", "data-student": student.id }, card(student, current, promote));
      item.style.setProperty("--depth", depth);
      return item;
    })));
}

// Parents before their children, each with how far it is from the base.
function lineage(students) {
  const known = new Set(students.map((each) => each.id));
  const found = [];
  const add = (parent, depth) => {
    for (const each of students) {
      const of = known.has(each.parent) ? each.parent : null;
      if (of === parent && !found.some(([other]) => other === each)) { found.push([each, depth]); add(each.id, depth + 1); }
    }
  };
  add(null, 0);
  return found;
}

function card(student, current, promote) {
  const gates = student.gates.map((gate) => el("span", { class: `badge ${gate.passed ? "ok" : "failed"}`, title: `at least ${gate.limit}` },
    `${gate.name} ${Number(gate.value).toFixed(3)}`));
  const made = [
    `taught by H with ${student.parent || "the base"}`,
    student.rows ? `${number(student.rows)} rows` : null,
    student.seconds ? `${Math.round(student.seconds)} s of training` : null,
    student.final_loss ? `loss ${student.final_loss.toFixed(3)}` : null,
  ].filter(Boolean);
  const now = student.id === current;
  return [
    el("div", { class: "row between" },
      el("div", {}, el("span", { class: "strong" }, student.id), " ", now ? el("span", { class: "badge accent" }, "the agent") : ""),
      now ? "" : el("button", { type: "button", onclick: () => promote(student.id) }, "Promote")),
    el("p", { class: "dim small" }, made.join(" · ")),
    el("div", { class: "row" }, scores(student.scores), gates),
  ];
}

function scores(told) {
  return Object.entries(told).flatMap(([name, score]) => {
    const value = typeof score === "number" ? score : score?.accuracy;
    return typeof value === "number" ? [el("span", { class: "badge" }, `${name} ${value.toFixed(3)}`)] : [];
  });
}
