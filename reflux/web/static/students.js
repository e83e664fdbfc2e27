// The students: lineage, scores and gates; promotion and rollback.

import { json } from "./api.js";
import { attempt, confirmed, el, empty, number, show, toast } from "./dom.js";
import { jobPanel } from "./job.js";
import { lossChart } from "./loss_chart.js";

export async function open(container) {
  const body = el("div", {});
  const refresh = async () => draw(body, await json("/api/students"), refresh);
  const panel = await jobPanel("distillation", () => attempt(refresh));
  show(container, el("div", { class: "scroll" }, el("div", { class: "column" }, body, panel.element)));
  await refresh();
  return panel.close;
}

function draw(body, { current, students }, refresh) {
  if (!students.length) {
    show(body, empty("No students yet", "A round of `reflux run` or a distillation below creates the first student."));
    return;
  }
  const change = async (path, message) => attempt(async () => {
    await json(path, { method: "POST" });
    toast(message);
    await refresh();
  });
  const promote = async (id) => {
    if (await confirmed(`Make ${id} the agent? New requests will use it.`, "Promote")) await change(`/api/students/${encodeURIComponent(id)}/promote`, `${id} is now the agent`);
  };
  const rollback = async () => {
    if (await confirmed(`Roll back ${current}? The previous agent will answer again.`, "Roll back")) await change("/api/students/rollback", "Rolled back");
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

// Parents before their children, each with its distance from the base.
function lineage(students) {
  const known = new Set(students.map((each) => each.id));
  const ordered = [];
  const add = (parent, depth) => {
    for (const each of students) {
      const of = known.has(each.parent) ? each.parent : null;
      if (of === parent && !ordered.some(([other]) => other === each)) { ordered.push([each, depth]); add(each.id, depth + 1); }
    }
  };
  add(null, 0);
  return ordered;
}

function card(student, current, promote) {
  const gates = student.gates.map((gate) => el("span", { class: `badge ${gate.passed ? "ok" : "failed"}`, title: `limit ${gate.limit}` },
    `${gate.passed ? "✓ passed" : "✗ failed"}: ${gate.name} ${Number(gate.value).toFixed(3)}`));
  const report = student.config.report || {};
  const facts = [
    `trained on answers of the overseer with ${student.parent || "the base"}`,
    report.rows ? `${number(report.rows)} rows` : null,
    report.seconds ? `${Math.round(report.seconds)} s of training` : null,
    report.final_loss ? `loss ${report.final_loss.toFixed(3)}` : null,
    report.tokens_per_second ? `${number(Math.round(report.tokens_per_second))} tokens/s` : null,
    report.truncated || report.dropped ? `${report.truncated} rows cut and ${report.dropped} dropped at ${report.max_length} tokens` : null,
  ].filter(Boolean);
  const isAgent = student.id === current;
  return [
    el("div", { class: "row between" },
      el("div", {}, el("span", { class: "strong" }, student.id), " ", isAgent ? el("span", { class: "badge accent" }, "the agent") : ""),
      isAgent ? "" : el("button", { type: "button", onclick: () => promote(student.id) }, "Promote")),
    el("p", { class: "dim small" }, facts.join(" · ")),
    lossChart(report.curve),
    el("div", { class: "row" }, scores(student.scores), gates),
  ];
}

function scores(all) {
  return Object.entries(all).flatMap(([name, score]) => {
    const value = typeof score === "number" ? score : score?.accuracy ?? score?.passed?.share ?? score?.share;
    return typeof value === "number" ? [el("span", { class: "badge" }, `${name} ${value.toFixed(3)}`)] : [];
  });
}
