// What a person can do to a node: approve or reject it, comment, put another answer in, ask it again.

import { json, treeEvents } from "./api.js";
import { attempt, el, toast } from "./dom.js";

// Buttons and the editor for a node. `changed(id, did, grows)` is called with the tree to show; where
// it `grows`, what is returned hears its events, and it is called again when all is recomputed.
export function actions(trajectory, node, changed, escalated = null) {
  const comment = el("input", { "aria-label": "Comment", placeholder: "Comment (may be empty)", maxlength: 10000 });
  const act = (action, answer = "") => attempt(async () => {
    await judge(trajectory, node.path, { action, answer, comment: comment.value }, changed);
    comment.value = "";
  });
  const input = el("textarea", { rows: 3, "aria-label": "Right answer", value: node.answer ?? "" });
  const editor = el("form", { class: "editor", hidden: true, onsubmit: (event) => { event.preventDefault(); act("edit", input.value); } },
    input, el("p", { class: "dim small" }, "What depended on this answer recomputes; the rest is replayed."),
    el("div", { class: "row" }, el("button", { class: "primary" }, "Save"), el("button", { type: "button", onclick: () => { editor.hidden = true; } }, "Cancel")));
  const button = (words, work, primary = false) => el("button", { type: "button", class: primary ? "primary" : null, onclick: work }, words);
  const approvable = escalated ? "proposal" in escalated : node.answer !== null;
  return el("div", { class: "actions" },
    el("div", { class: "row" },
      approvable ? button("Approve", () => act("approve"), true) : "",
      button(escalated ? "Answer" : "Edit", () => { editor.hidden = !editor.hidden; if (!editor.hidden) input.focus(); }),
      escalated ? "" : button("Ask again", () => act("again")),
      escalated ? "" : button("Reject", () => act("reject")),
      button("Comment", () => act("comment"))),
    comment, editor);
}

export async function judge(trajectory, path, said, changed) {
  const done = await json(`/api/trajectories/${encodeURIComponent(trajectory)}/judgements`, { body: { path, ...said } });
  toast(done.recomputing ? `${done.did}: recomputing what depends on it` : done.did);
  const hear = await changed(done.trajectory, done.did, done.recomputing);
  if (!done.recomputing) return;
  let failed = null;
  for await (const event of treeEvents(done.trajectory)) {
    hear?.(event);
    if (event.event === "answered" && event.path === "" && event.status === "failed") failed = event.error;
  }
  if (failed) toast(failed, true);
  else toast("recomputed");
  await changed(done.trajectory, "recomputed", false);
}
