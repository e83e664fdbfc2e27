// The forms of the jobs.

import { json } from "./api.js";
import { attempt, el } from "./dom.js";

const stamp = () => new Date().toISOString().slice(0, 16).replace(/[-T:]/g, "");
const field = (label, input) => el("label", { class: "field" }, label, input);
const NAME = { required: true, pattern: "[a-z0-9][a-z0-9._\\-]{0,63}", title: "Lowercase letters, digits, '.', '_' and '-'" };

function jobForm(start, button, ...fields) {
  const form = el("form", { class: "starter-form" }, ...fields, el("div", { class: "row" }, el("button", { class: "primary" }, button)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const data = new FormData(form);
    attempt(() => start(data));
  });
  return form;
}

async function evaluation(start) {
  const { tasks, task, systems } = await json("/api/job/choices");
  const boxes = el("fieldset", {}, el("legend", {}, "Systems"), systems.map((system) => el("label", { class: "check" },
    el("input", { type: "checkbox", name: "systems", value: system, checked: ["direct", "amplified"].includes(system) }), system)));
  return jobForm((data) => start({
    kind: "evaluation", name: data.get("name"), task: data.get("task"), level: Number(data.get("level")),
    limit: Number(data.get("limit")), systems: data.getAll("systems"), seed: Number(data.get("seed")),
  }), "Evaluate",
  el("div", { class: "row top" },
    field("Name", el("input", { name: "name", value: `eval-${stamp()}`, ...NAME })),
    field("Task", el("select", { name: "task" }, tasks.map((each) => el("option", { value: each, selected: each === (task || "addition") }, each)))),
    field("Level", el("input", { name: "level", type: "number", min: 1, max: 64, value: 3, required: true })),
    field("Questions", el("input", { name: "limit", type: "number", min: 1, max: 100000, value: 100, required: true })),
    field("Seed", el("input", { name: "seed", type: "number", min: 0, value: 1, required: true }))),
  boxes);
}

async function distillation(start) {
  const optional = (data, name) => (data.get(name) ? { [name]: Number(data.get(name)) } : {});
  return jobForm((data) => start({
    kind: "distillation", name: data.get("name"), ...optional(data, "epochs"), ...optional(data, "steps"), ...optional(data, "learning_rate"),
  }), "Distill",
  el("p", { class: "dim" }, "Trains a student on this run's accepted trajectories, including human edits."),
  el("div", { class: "row top" },
    field("Student name", el("input", { name: "name", value: `student-${stamp()}`, ...NAME })),
    field("Epochs", el("input", { name: "epochs", type: "number", min: 0.01, step: "any", placeholder: "default" })),
    field("Maximum steps", el("input", { name: "steps", type: "number", min: 1, placeholder: "set by epochs" })),
    field("Learning rate", el("input", { name: "learning_rate", type: "number", min: 0.0000001, max: 1, step: "any", placeholder: "default" }))));
}

export const FORMS = { evaluation, distillation };
