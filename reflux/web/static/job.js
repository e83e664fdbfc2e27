// Start a long job, watch it, stop it. The server holds it, so a reload of the page loses nothing.

import { json } from "./api.js";
import { attempt, el, seconds, show, toast } from "./dom.js";
import { FORMS } from "./job_forms.js";

const POLL = 700; // Milliseconds.

// A card with the form for `kind` and whatever job there is; `ended` is called when one of `kind` is done.
export async function jobPanel(kind, ended) {
  const element = el("div", { class: "card job" });
  const state = { kind, ended, element, timer: 0, said: 0, running: false, closed: false };
  await look(state);
  return { element, close: () => { state.closed = true; clearTimeout(state.timer); } };
}

async function look(state) {
  const { job } = await json(`/api/job?after=${state.said}`);
  if (state.closed) return;
  state.lost = false;
  if (!job || (job.kind !== state.kind && job.state !== "running")) { show(state.element, await form(state)); return; }
  if (!state.log || state.of !== job.command) {
    state.of = job.command;
    state.log = el("pre", { class: "lines", tabindex: 0, "aria-label": "What the job says" });
    state.head = el("div", {});
    state.saying = el("details", { class: "saying", open: job.state !== "done" }, el("summary", {}, "What it says"), state.log);
    state.formed = job.state === "running" ? el("div", {}) : await form(state);
    show(state.element, state.formed, state.head, state.saying);
  }
  for (const line of job.lines) state.log.append(line, "\n");
  if (job.lines.length) state.log.scrollTop = state.log.scrollHeight;
  state.said = job.said;
  head(state, job);
  const running = job.state === "running";
  if (state.running && !running) {
    state.formed.replaceWith((state.formed = await form(state)));
    if (job.kind === state.kind && job.state === "done") { state.saying.open = false; state.ended(job); }
  }
  state.running = running;
  if (running) poll(state);
}

// The job goes on while the server is not heard for a moment, and so does the looking.
function poll(state) {
  state.timer = setTimeout(async () => {
    try {
      await look(state);
    } catch (error) {
      if (state.closed) return;
      if (!state.lost) toast(error.message, true);
      state.lost = true;
      poll(state);
    }
  }, POLL);
}

const STATES = { running: "at work", done: "done", failed: "failed", stopped: "stopped" };
const BADGES = { running: "accent", done: "ok", failed: "failed", stopped: "rejected" };

function head(state, job) {
  const stages = [...state.log.textContent.matchAll(/^(.+): (\d+)\/(\d+)(.*)$/gm)];
  const last = stages.at(-1);
  show(state.head,
    el("div", { class: "row" },
      el("span", { class: `badge ${BADGES[job.state]}` }, STATES[job.state]),
      el("span", { class: "strong grow" }, `${job.kind} ${job.name}`),
      el("span", { class: "dim" }, seconds(job.seconds)),
      job.state === "running" ? el("button", { type: "button", onclick: () => attempt(() => json("/api/job", { method: "DELETE" })) }, "Stop") : ""),
    last && job.state === "running" ? el("label", { class: "stage" }, `${last[1]}: ${last[2]} of ${last[3]}`, el("progress", { max: last[3], value: last[2] })) : "");
}

async function form(state) {
  const made = await FORMS[state.kind](async (body) => {
    await json("/api/job", { body });
    state.log = null;
    state.said = 0;
    state.running = true;
    await look(state);
  });
  return el("details", { class: "starter" }, el("summary", {}, `Start ${state.kind === "evaluation" ? "an evaluation" : "a distillation"}`), made);
}
