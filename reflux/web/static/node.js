// The drawer: all that is recorded of one node, and what a person can do to it.

import { json } from "./api.js";
import { attempt, el, number, seconds, show } from "./dom.js";
import { shaded } from "./logprobs.js";
import { actions } from "./node_actions.js";

export const STATUS = {
  ok: "check passed", unchecked: "unchecked", truncated: "cut by the token limit", rejected: "rejected", over_budget: "over budget",
  failed: "failed", stopped: "stopped", running: "running", waiting: "waits for a human",
};

const drawer = document.getElementById("drawer");
let last = 0;
let before = null;

export function closeNode() {
  if (drawer.hidden) return;
  drawer.hidden = true;
  document.querySelectorAll(".tree [aria-selected]").forEach((line) => line.removeAttribute("aria-selected"));
  before?.isConnected && before.focus({ preventScroll: true });
}

// `changed` is called with the tree to show after a person's word changed it; see `actions`.
export async function openNode(trajectory, path, changed) {
  const mine = ++last;
  if (drawer.hidden) before = document.activeElement;
  // A person's word leads to another tree: this drawer goes along, unless it has moved on.
  const again = async (id, did, grows) => {
    const hear = await changed(id, did, grows);
    if (!grows && mine === last && !drawer.hidden) await openNode(id, path, changed);
    return hear;
  };
  const where = `/api/trajectories/${encodeURIComponent(trajectory)}`;
  await attempt(async () => {
    const [record, tree] = await Promise.all([json(`${where}/node?path=${encodeURIComponent(path)}`), json(where)]);
    if (mine !== last) return;
    const node = find(tree.tree, path);
    drawer.hidden = false;
    show(drawer, head(node), figures(node, record), ...said(node, record), ...calls(record), judgements(record), changed ? actions(trajectory, node, again) : "");
    drawer.scrollTop = 0;
  });
}

function find(node, path) {
  if (node.path === path) return node;
  const next = node.children.find((child) => path === child.path || path.startsWith(`${child.path}/`));
  return next ? find(next, path) : { path, question: "", answer: null, status: "running", children: [] };
}

function head(node) {
  return el("header", { class: "drawer-head" },
    el("span", { class: `badge ${node.status}` }, STATUS[node.status] || node.status),
    el("span", { class: "dim grow" }, node.path ? `node ${node.path.slice(1)}` : "root"),
    el("button", { type: "button", class: "icon", "aria-label": "Close", onclick: closeNode }, "✕"));
}

function figures(node, record) {
  const took = record.calls.reduce((sum, call) => sum + call.seconds, 0);
  const spent = record.calls.reduce((sum, call) => sum + call.prompt_tokens + call.completion_tokens, 0);
  const told = [
    ["answered by", node.answered_by || "–"],
    ["model calls", number(node.calls || 0)],
    ["tokens", number(spent)],
    ["time", seconds(took)],
    ["cost", record.cost === null ? "no price" : record.cost ? record.cost.toPrecision(2) : "0"],
    ["votes", number(node.votes || 0)],
  ];
  return el("dl", { class: "figures" }, told.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function said(node, record) {
  const parts = [el("h3", {}, "Question"), el("p", { class: "text" }, node.question)];
  if (node.answer !== null) parts.push(el("h3", {}, "Answer"), el("p", { class: "text strong" }, node.answer));
  if (node.error) parts.push(el("p", { class: "bad text" }, node.error));
  if (node.note) parts.push(el("p", { class: "dim text" }, node.note));
  const tally = record.judgements.map((each) => each.detail.tally).filter((each) => each?.length).at(-1);
  if (tally && (tally.length > 1 || tally[0][1] > 1)) parts.push(votes(tally));
  return parts;
}

function votes(tally) {
  const cast = tally.reduce((sum, [, weight]) => sum + weight, 0) || 1;
  return el("div", { class: "votes" }, el("h3", {}, "Votes"), tally.map(([answer, weight]) => {
    const meter = el("meter", { min: 0, max: 1, value: weight / cast, "aria-label": `${weight} votes` });
    return el("div", { class: "vote" }, el("span", { class: "text" }, answer), meter, el("span", { class: "dim" }, number(weight)));
  }));
}

const ROLES = { answer: "Copy answers", "overseer.ask": "H asks", "overseer.combine": "H combines", consensus: "Consensus" };

function calls(record) {
  if (!record.calls.length) return [el("p", { class: "dim" }, "No call was made here.")];
  const more = record.calls_made - record.calls.length;
  return [
    el("h3", {}, "Calls"),
    ...record.calls.map((call, at) => callView(call, at === 0 && record.calls.length === 1)),
    more > 0 ? el("p", { class: "dim" }, `${number(more)} more are in the log.`) : "",
  ];
}

function callView(call, open) {
  const name = call.kind === "tool" ? `Tool ${call.model}` : call.kind === "script" ? `H: ${call.model}` : ROLES[call.role] || call.role;
  const bits = [];
  if (call.kind === "model") bits.push(call.model, `${number(call.prompt_tokens + call.completion_tokens)} tokens`, seconds(call.seconds));
  if (call.vote) bits.push(`vote ${call.vote + 1}`);
  if (call.attempt) bits.push(`attempt ${call.attempt + 1}`);
  if (call.sampling.temperature) bits.push(`temperature ${call.sampling.temperature}`);
  if (call.cached) bits.push("from the cache");
  const body = call.logprobs.length ? shaded(call.logprobs) : el("div", { class: "text" }, pretty(call));
  return el("details", { class: `call ${call.error ? "failed" : ""}`, open },
    el("summary", {}, el("span", { class: "strong" }, name), el("span", { class: "dim" }, bits.join(" · "))),
    call.messages.filter((each) => each.content).map((each) => el("div", { class: "message" }, el("span", { class: "role" }, each.role), el("div", { class: "text" }, typeof each.content === "string" ? each.content : JSON.stringify(each.content)))),
    call.tool_calls.map(([, tool, given]) => el("div", { class: "message" }, el("span", { class: "role" }, `calls ${tool}`), el("div", { class: "text" }, given))),
    el("div", { class: "message reply" }, el("span", { class: "role" }, call.error ? "error" : "reply"), call.error ? el("div", { class: "text bad" }, call.error) : body));
}

// A scripted H's step is JSON: its questions, or its answer, are what a person wants to read.
function pretty(call) {
  if (call.kind !== "script") return call.completion || "";
  try {
    const step = JSON.parse(call.completion);
    if (step.kind === "answer") return `answers: ${step.text}`;
    const asked = step.subquestions || step.questions || [];
    if (asked.length) return asked.map((each, at) => `${at + 1}. ${each.text}`).join("\n");
  } catch { /* Shown as it is. */ }
  return call.completion;
}

const WORDS = {
  check: ["the check passed", "the check failed"],
  verdict: ["approved", "rejected"], override: ["put in by a person", ""], consensus: ["consensus", "no consensus"],
};

function verdict({ kind, ok, detail }) {
  if (STATUS[detail.status]) return STATUS[detail.status];
  const words = WORDS[kind];
  if (!words || ok === null) return kind.replaceAll("_", " ");
  return ok ? words[0] : words[1];
}

function judgements(record) {
  const told = record.judgements.filter(({ kind }) => kind !== "user");
  if (!told.length) return "";
  return el("div", {}, el("h3", {}, "Verdicts"), el("ul", { class: "verdicts" }, told.map((each) => {
    const why = each.detail.rule || each.detail.comment || each.detail.error || each.detail.reason || "";
    const mark = each.ok === null || each.detail.status === "unchecked" ? "·" : each.ok ? "✓" : "✗";
    return el("li", { class: each.ok === false ? "bad" : "" },
      el("span", { class: "mark", "aria-hidden": true }, mark),
      el("span", {}, verdict(each)),
      why ? el("span", { class: "dim text" }, String(why)) : "",
      each.author !== "reflux" ? el("span", { class: "dim" }, `by ${each.author}`) : "");
  })));
}
