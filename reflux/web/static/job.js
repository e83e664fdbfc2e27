// Starts, follows and stops a job. The server owns it, so a reload of the page loses nothing.

import { json } from "./api.js";
import { attempt, el, seconds, show, toast } from "./dom.js";
import { FORMS } from "./job_forms.js";
import { lossChart } from "./loss_chart.js";

const POLL = 700; // Milliseconds.

// A card with the form for `kind` and the current job; calls `ended` when a job of `kind` is done.
export async function jobPanel(kind, ended) {
  const element = el("div", { class: "card job" });
  const state = { kind, ended, element, timer: 0, lineCount: 0, running: false, closed: false };
  await refresh(state);
  return { element, close: () => { state.closed = true; clearTimeout(state.timer); } };
}

async function refresh(state) {
  const { job } = await json(`/api/job?after=${state.lineCount}`);
  if (state.closed) return;
  state.lost = false;
  if (!job || (job.kind !== state.kind && job.state !== "running")) { show(state.element, await form(state)); return; }
  if (!state.log || state.of !== job.command) {
    state.of = job.command;
    state.log = el("pre", { class: "lines", tabindex: 0, "aria-label": "Job log" });
    state.head = el("div", {});
    state.details = el("details", { class: "job-log", open: job.state !== "done" }, el("summary", {}, "Log"), state.log);
    state.formSlot = job.state === "running" ? el("div", {}) : await form(state);
    show(state.element, state.formSlot, state.head, state.details);
  }
  for (const line of job.lines) state.log.append(line, "\n");
  if (job.lines.length) state.log.scrollTop = state.log.scrollHeight;
  state.lineCount = job.line_count;
  head(state, job);
  const running = job.state === "running";
  if (state.running && !running) {
    state.formSlot.replaceWith((state.formSlot = await form(state)));
    if (job.kind === state.kind && job.state === "done") { state.details.open = false; state.ended(job); }
  }
  state.running = running;
  if (running) poll(state);
}

// The job continues while the server cannot be reached, and so does the polling.
function poll(state) {
  state.timer = setTimeout(async () => {
    try {
      await refresh(state);
    } catch (error) {
      if (state.closed) return;
      if (!state.lost) toast(error.message, true);
      state.lost = true;
      poll(state);
    }
  }, POLL);
}

const STATES = { running: "Running", done: "Done", failed: "Failed", stopped: "Stopped" };
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
    last && job.state === "running" ? el("label", { class: "stage" }, `${last[1]}: ${last[2]} of ${last[3]}${last[4]}`, el("progress", { max: last[3], value: last[2] })) : "",
    lossChart(curve(state.log.textContent)));
}

// The losses that a distillation has printed so far.
function curve(log) {
  const lines = [...log.matchAll(/^distill .+: (\d+)\/\d+ loss ([\d.]+)(?:, eval ([\d.]+))?/gm)];
  const points = (group) => lines.filter((line) => line[group]).map((line) => [Number(line[1]), Number(line[group])]);
  return { loss: points(2), eval_loss: points(3) };
}

async function form(state) {
  const fields = await FORMS[state.kind](async (body) => {
    await json("/api/job", { body });
    state.log = null;
    state.lineCount = 0;
    state.running = true;
    await refresh(state);
  });
  return el("details", { class: "starter" }, el("summary", {}, `Start ${state.kind === "evaluation" ? "an evaluation" : "a distillation"}`), fields);
}
