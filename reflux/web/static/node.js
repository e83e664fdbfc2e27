// The drawer: the record of one node, and the actions on it.

import { json } from "./api.js";
import { attempt, el, number, seconds, show } from "./dom.js";
import { shaded } from "./logprobs.js";
import { actions } from "./node_actions.js";
import { statusBadge } from "./status.js";

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

// Calls `changed` with the tree to show after a judgement; see `actions`.
export async function openNode(trajectory, path, changed) {
  const mine = ++last;
  if (drawer.hidden) before = document.activeElement;
  // A judgement creates a revision; the drawer follows it unless another node was opened.
  const again = async (id, did, grows) => {
    const listener = await changed(id, did, grows);
    if (!grows && mine === last && !drawer.hidden) await openNode(id, path, changed);
    return listener;
  };
  const where = `/api/trajectories/${encodeURIComponent(trajectory)}`;
  await attempt(async () => {
    const [record, tree] = await Promise.all([json(`${where}/node?path=${encodeURIComponent(path)}`), json(where)]);
    if (mine !== last) return;
    const node = find(tree.tree, path);
    drawer.hidden = false;
    show(drawer, head(node), totals(node, record), ...content(node, record), ...calls(record), judgements(record), changed ? actions(trajectory, node, again) : "");
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
    statusBadge(node.status),
    el("span", { class: "dim grow" }, node.path ? `node ${node.path.slice(1)}` : "root"),
    el("button", { type: "button", class: "icon", "aria-label": "Close", onclick: closeNode }, "✕"));
}

function totals(node, record) {
  const time = record.calls.reduce((sum, call) => sum + call.seconds, 0);
  const tokens = record.calls.reduce((sum, call) => sum + call.prompt_tokens + call.completion_tokens, 0);
  const figures = [
    ["answered by", node.answered_by === "H" ? "overseer" : node.answered_by || "–"],
    ["own model calls", number(node.calls || 0)],
    ["own tokens", number(tokens)],
    ...(node.children?.length && node.total ? [["calls in all", number(node.total.calls)], ["tokens in all", number(node.total.tokens)]] : []),
    ["time", seconds(time)],
    ["cost", record.cost === null ? "no price" : record.cost ? record.cost.toPrecision(2) : "0"],
    ["votes", number(node.votes || 0)],
  ];
  return el("dl", { class: "figures" }, figures.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function content(node, record) {
  const parts = [el("h3", {}, "Question"), el("p", { class: "text" }, node.question)];
  if (node.answer !== null) parts.push(el("h3", {}, "Answer"), el("p", { class: "text strong" }, node.answer));
  if (node.error) parts.push(el("p", { class: "bad text" }, node.error));
  const why = [node.division, node.note].filter(Boolean);
  if (why.length) parts.push(el("h3", {}, "Why"), ...why.map((each) => el("p", { class: "dim text" }, each)));
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

const ROLES = { answer: "Copy answers", "overseer.ask": "Overseer asks", "overseer.combine": "Overseer combines", consensus: "Consensus" };

function calls(record) {
  if (!record.calls.length) return [el("p", { class: "dim" }, "No model calls.")];
  const more = record.calls_made - record.calls.length;
  return [
    el("h3", {}, "Calls"),
    ...record.calls.map((call, index) => callView(call, index === 0 && record.calls.length === 1)),
    more > 0 ? el("p", { class: "dim" }, `${number(more)} more calls are recorded.`) : "",
  ];
}

function callView(call, open) {
  const name = call.kind === "tool" ? `Tool ${call.model}` : call.kind === "script" ? `Overseer: ${call.model}` : ROLES[call.role] || call.role;
  const bits = [];
  if (call.kind === "model") bits.push(call.model, `${number(call.prompt_tokens + call.completion_tokens)} tokens`, seconds(call.seconds));
  if (call.vote) bits.push(`vote ${call.vote + 1}`);
  if (call.attempt) bits.push(`attempt ${call.attempt + 1}`);
  if (call.sampling.temperature) bits.push(`temperature ${call.sampling.temperature}`);
  if (call.cached) bits.push("from the cache");
  if (call.error) bits.push("failed");
  const body = call.logprobs.length ? shaded(call.logprobs) : el("div", { class: "text" }, pretty(call));
  return el("details", { class: `call ${call.error ? "failed" : ""}`, open },
    el("summary", {}, el("span", { class: "strong" }, name), el("span", { class: "dim" }, bits.join(" · "))),
    call.messages.filter((each) => each.content).map((each) => el("div", { class: "message" }, el("span", { class: "role" }, each.role), el("div", { class: "text" }, typeof each.content === "string" ? each.content : JSON.stringify(each.content)))),
    call.tool_calls.map(([, tool, callArguments]) => el("div", { class: "message" }, el("span", { class: "role" }, `calls ${tool}`), el("div", { class: "text" }, callArguments))),
    el("div", { class: "message reply" }, el("span", { class: "role" }, call.error ? "error" : "reply"), call.error ? el("div", { class: "text bad" }, call.error) : body));
}

// The step of a scripted overseer is JSON; show its questions or its answer.
function pretty(call) {
  if (call.kind !== "script") return call.completion || "";
  try {
    const step = JSON.parse(call.completion);
    if (step.kind === "answer") return `answers: ${step.text}`;
    const questions = step.subquestions || step.questions || [];
    if (questions.length) return questions.map((each, index) => `${index + 1}. ${each.text}`).join("\n");
  } catch { /* Not JSON: show the text. */ }
  return call.completion;
}

const WORDS = {
  check: ["the check passed", "the check failed"],
  verdict: ["approved", "rejected"], override: ["set by a human", ""], consensus: ["consensus", "no consensus"],
};

function verdict({ kind, ok, detail }) {
  if (STATUS[detail.status]) return STATUS[detail.status];
  const words = WORDS[kind];
  if (!words || ok === null) return kind.replaceAll("_", " ");
  return ok ? words[0] : words[1];
}

function judgements(record) {
  const shown = record.judgements.filter(({ kind }) => kind !== "user");
  if (!shown.length) return "";
  return el("div", {}, el("h3", {}, "Verdicts"), el("ul", { class: "verdicts" }, shown.map((each) => {
    const reason = each.detail.rule || each.detail.comment || each.detail.error || each.detail.reason || "";
    const mark = each.ok === null || each.detail.status === "unchecked" ? "·" : each.ok ? "✓" : "✗";
    return el("li", { class: each.ok === false ? "bad" : "" },
      el("span", { class: "mark", "aria-hidden": true }, mark),
      el("span", {}, verdict(each)),
      reason ? el("span", { class: "dim text" }, String(reason)) : "",
      each.author !== "reflux" ? el("span", { class: "dim" }, `by ${each.author}`) : "");
  })));
}
