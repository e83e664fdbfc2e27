// The review queue: what waits for a person, what is in dispute, and what was drawn by chance.

import { json } from "./api.js";
import { attempt, el, empty, show } from "./dom.js";
import { actions } from "./node_actions.js";
import { openNode } from "./node.js";
import { TreeModel } from "./tree_model.js";
import { TreeView } from "./tree_view.js";

const KINDS = [["escalated", "Waiting for a person"], ["disputed", "In dispute"], ["audit", "Drawn by chance"]];

export async function open(place) {
  const chips = el("div", { class: "chips", role: "group", "aria-label": "Kind" });
  const list = el("div", { class: "items" });
  show(place, el("div", { class: "scroll" }, el("div", { class: "column" }, chips, list)));
  const buttons = KINDS.map(([why, words]) => el("button", { type: "button", "aria-pressed": false, "data-why": why, onclick: () => attempt(() => turn(why)) }, words));
  const turn = async (why) => {
    buttons.forEach((each) => each.setAttribute("aria-pressed", each.dataset.why === why));
    show(list);
    await more(list, why, null);
    if (!list.firstChild) show(list, empty("Nothing to review here", "An item leaves the queue when it is approved, edited or rejected."));
  };
  chips.append(...buttons);
  // The first kind that has something.
  for (const [why] of KINDS) {
    await turn(why);
    if (list.querySelector(".item")) return;
  }
  await turn(KINDS[0][0]);
}

async function more(list, why, before) {
  let next = before;
  do {
    const asked = new URLSearchParams({ why, ...(next ? { before: next } : {}) });
    const page = await json(`/api/review?${asked}`);
    list.querySelector(".more")?.remove();
    if (page.writing && page.items.length && !list.firstChild) list.append(el("p", { class: "dim small" }, `In this run ${page.writing}.`));
    list.append(...page.items.map(card));
    next = page.next;
    if (page.items.length) break;
  } while (next !== null);
  if (next !== null) list.append(el("button", { type: "button", class: "quiet more", onclick: () => attempt(() => more(list, why, next)) }, "More"));
}

function card(item) {
  const node = { path: item.path, answer: item.answer };
  const tree = el("div", { class: "inner" });
  const place = el("article", { class: "card item", "data-id": item.id, "aria-label": item.question });
  const judged = (id, did) => {
    if (did === "commented" || !place.isConnected) return;
    const next = place.nextElementSibling || place.previousElementSibling;
    place.remove();
    next?.querySelector("button")?.focus();
  };
  const look = async () => {
    const found = await json(`/api/trajectories/${encodeURIComponent(item.trajectory)}`);
    new TreeView(tree, found.trajectory, TreeModel.from(found.tree));
    await openNode(item.trajectory, item.path, null);
  };
  const proposal = item.form?.proposal;
  return fillCard(place,
    el("div", { class: "row between" },
      el("span", { class: `badge ${item.status}` }, item.status.replace("_", " ")),
      el("span", { class: "dim small" }, item.reason)),
    el("p", { class: "text strong" }, item.question),
    (item.form?.transcript || []).map((said) => el("p", { class: "text dim" }, `${said.question} → ${said.answer}`)),
    item.answer !== null ? el("p", { class: "text" }, item.answer) : "",
    proposal ? el("p", { class: "text" }, `proposed: ${proposed(proposal)}`) : "",
    actions(item.trajectory, node, judged, item.form),
    el("details", { class: "starter tree-of", ontoggle: (event) => { if (event.currentTarget.open && !tree.firstChild) attempt(look); } },
      el("summary", {}, "Its tree"), tree));
}

function fillCard(place, ...children) {
  show(place, ...children);
  return place;
}

function proposed(step) {
  if (step.kind === "answer") return `answer ${step.text}`;
  const asked = (step.subquestions || []).map((each) => each.text);
  return asked.length ? `ask ${asked.join(" · ")}` : "leave it to a copy";
}
