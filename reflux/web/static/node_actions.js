// Actions on a node: approve, edit, ask again, reject, comment.

import { json, treeEvents } from "./api.js";
import { attempt, el, toast } from "./dom.js";

// Buttons and editor of a node. Calls `changed(id, did, grows)` with the tree to show. If it `grows`,
// the returned listener receives its events, and `changed` is called again at the end. `spent` returns
// the seconds since the node was shown.
export function actions(trajectory, node, changed, escalated = null, spent = () => null) {
  const comment = el("input", { "aria-label": "Comment", placeholder: "Comment (optional)", maxlength: 10000 });
  const act = (action, answer = "") => attempt(async () => {
    await judge(trajectory, node.path, { action, answer, comment: comment.value, seconds: spent() }, changed);
    comment.value = "";
  });
  const input = el("textarea", { rows: 3, "aria-label": "Right answer", value: node.answer ?? "" });
  const editor = el("form", { class: "editor", hidden: true, onsubmit: (event) => { event.preventDefault(); act("edit", input.value); } },
    input, el("p", { class: "dim small" }, "Answers that depend on this one are recomputed; the others are replayed."),
    el("div", { class: "row" }, el("button", { class: "primary" }, "Save"), el("button", { type: "button", onclick: () => { editor.hidden = true; } }, "Cancel")));
  const button = (label, action, primary = false) => el("button", { type: "button", class: primary ? "primary" : null, onclick: action }, label);
  const approvable = escalated ? "proposal" in escalated : node.answer !== null;
  // Approving a refused answer must not be the default.
  const standing = escalated ? approvable : ["ok", "unchecked"].includes(node.status);
  return el("div", { class: "actions" },
    el("div", { class: "row" },
      approvable ? button("Approve", () => act("approve"), standing) : "",
      button(escalated ? "Answer" : "Edit", () => { editor.hidden = !editor.hidden; if (!editor.hidden) input.focus(); }, !standing),
      escalated ? "" : button("Ask again", () => act("again")),
      escalated ? "" : button("Reject", () => act("reject")),
      button("Comment", () => act("comment"))),
    comment, editor);
}

// The name under which this browser reviews, where an item needs several reviewers; a value sets it.
export function reviewer(name = null) {
  if (name !== null) localStorage.setItem("reflux-reviewer", name);
  return localStorage.getItem("reflux-reviewer") || "";
}

export async function judge(trajectory, path, judgement, changed) {
  const result = await json(`/api/trajectories/${encodeURIComponent(trajectory)}/judgements`, { body: { path, reviewer: reviewer(), ...judgement } });
  toast(result.recomputing ? `${result.did}; recomputing the answers that depend on it` : result.did);
  const listener = await changed(result.trajectory, result.did, result.recomputing);
  if (!result.recomputing) return;
  let failed = null;
  for await (const event of treeEvents(result.trajectory)) {
    listener?.(event);
    if (event.event === "answered" && event.path === "" && event.status === "failed") failed = event.error;
  }
  if (failed) toast(failed, true);
  else toast("recomputed");
  await changed(result.trajectory, "recomputed", false);
}
