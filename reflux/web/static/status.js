// The status of an answer as a mark and a word, never by color alone.

import { el } from "./dom.js";

const WORDS = {
  ok: "accepted", unchecked: "not checked", truncated: "truncated", rejected: "rejected", over_budget: "over budget",
  failed: "failed", stopped: "stopped", running: "running", waiting: "waiting for a human",
};
const MARKS = { ok: "✓", unchecked: "?", truncated: "…", rejected: "✗", over_budget: "$", failed: "!", stopped: "■", running: "○", waiting: "‖" };

export const statusWord = (status) => WORDS[status] || status.replaceAll("_", " ");

export function statusMark(status) {
  const word = statusWord(status);
  return el("span", { class: `dot ${status}`, role: "img", "aria-label": word, title: word }, MARKS[status] || "·");
}

export const statusBadge = (status) => el("span", { class: `badge ${status}` }, statusWord(status));
