// The forms that start a job.

import { json } from "./api.js";
import { attempt, el } from "./dom.js";

const stamp = () => new Date().toISOString().slice(0, 16).replace(/[-T:]/g, "");
const field = (label, input) => el("label", { class: "field" }, label, input);
const NAME = { required: true, pattern: "[a-z0-9][a-z0-9._\\-]{0,63}", title: "Small letters, digits, '.', '_' and '-'" };

function framed(start, button, ...fields) {
  const form = el("form", { class: "starter-form" }, ...fields, el("div", { class: "row" }, el("button", { class: "primary" }, button)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const told = new FormData(form);
    attempt(() => start(told));
  });
  return form;
}

async function evaluation(start) {
  const { tasks, task, systems } = await json("/api/job/choices");
  const boxes = el("fieldset", {}, el("legend", {}, "Systems"), systems.map((system) => el("label", { class: "check" },
    el("input", { type: "checkbox", name: "systems", value: system, checked: ["direct", "amplified"].includes(system) }), system)));
  return framed((told) => start({
    kind: "evaluation", name: told.get("name"), task: told.get("task"), level: Number(told.get("level")),
    limit: Number(told.get("limit")), systems: told.getAll("systems"), seed: Number(told.get("seed")),
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
  const optional = (told, name) => (told.get(name) ? { [name]: Number(told.get(name)) } : {});
  return framed((told) => start({
    kind: "distillation", name: told.get("name"), ...optional(told, "epochs"), ...optional(told, "steps"), ...optional(told, "learning_rate"),
  }), "Distill",
  el("p", { class: "dim" }, "A student from the accepted trajectories of this run, persons' edits among them."),
  el("div", { class: "row top" },
    field("Name of the student", el("input", { name: "name", value: `student-${stamp()}`, ...NAME })),
    field("Epochs", el("input", { name: "epochs", type: "number", min: 0.01, step: "any", placeholder: "default" })),
    field("Or steps", el("input", { name: "steps", type: "number", min: 1, placeholder: "by epochs" })),
    field("Learning rate", el("input", { name: "learning_rate", type: "number", min: 0.0000001, max: 1, step: "any", placeholder: "default" }))));
}

export const FORMS = { evaluation, distillation };
