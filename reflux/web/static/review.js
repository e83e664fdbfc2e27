// The review queue: questions that wait for a human, disputed answers, and a random audit.

import { json } from "./api.js";
import { attempt, el, empty, show } from "./dom.js";
import { actions, reviewer } from "./node_actions.js";
import { openNode } from "./node.js";
import { statusBadge } from "./status.js";
import { TreeModel } from "./tree_model.js";
import { TreeView } from "./tree_view.js";

const KINDS = [["escalated", "Waiting for a human"], ["disputed", "Disputed"], ["audit", "Random audit"]];

export async function open(container) {
  const chips = el("div", { class: "chips", role: "group", "aria-label": "Kind" });
  const list = el("div", { class: "items" });
  const name = el("input", { "aria-label": "Your name", placeholder: "Your name", maxlength: 60, value: reviewer() });
  const naming = el("form", { class: "row", hidden: true, onsubmit: (event) => { event.preventDefault(); reviewer(name.value.trim()); open(container); } },
    el("span", { class: "dim small" }), name, el("button", {}, "Review as"));
  show(container, el("div", { class: "scroll" }, el("div", { class: "column" }, naming, chips, list)));
  const buttons = KINDS.map(([why, label]) => el("button", { type: "button", "aria-pressed": false, "data-why": why, onclick: () => attempt(() => choose(why)) }, label));
  const choose = async (why) => {
    buttons.forEach((each) => each.setAttribute("aria-pressed", each.dataset.why === why));
    show(list);
    const { reviewers } = await more(list, why, null);
    naming.hidden = reviewers < 2;
    naming.firstChild.textContent = `${reviewers} reviewers judge each item.`;
    if (!list.firstChild) show(list, empty("Nothing to review", "Items leave the queue when they are approved, edited or rejected."));
  };
  chips.append(...buttons);
  // Open the first kind with an item.
  for (const [why] of KINDS) {
    await choose(why);
    if (list.querySelector(".item")) return;
  }
  await choose(KINDS[0][0]);
}

async function more(list, why, before) {
  let next = before, page;
  do {
    const query = new URLSearchParams({ why, ...(next ? { before: next } : {}), ...(reviewer() ? { reviewer: reviewer() } : {}) });
    page = await json(`/api/review?${query}`);
    list.querySelector(".more")?.remove();
    if (page.writing && page.items.length && !list.firstChild) list.append(el("p", { class: "dim small" }, `In this run ${page.writing}.`));
    list.append(...page.items.map(card));
    next = page.next;
    if (page.items.length) break;
  } while (next !== null);
  if (next !== null) list.append(el("button", { type: "button", class: "quiet more", onclick: () => attempt(() => more(list, why, next)) }, "More"));
  return page;
}

function card(item) {
  const node = { path: item.path, answer: item.answer, status: item.status };
  const tree = el("div", { class: "inner" });
  const shown = performance.now();
  const article = el("article", { class: "card item", "data-id": item.id, "aria-label": item.question });
  const judged = (id, did) => {
    if (did === "commented" || !article.isConnected) return;
    const next = article.nextElementSibling || article.previousElementSibling;
    article.remove();
    next?.querySelector("button")?.focus();
  };
  const openTree = async () => {
    const body = await json(`/api/trajectories/${encodeURIComponent(item.trajectory)}`);
    new TreeView(tree, body.trajectory, TreeModel.from(body.tree));
    await openNode(item.trajectory, item.path, null);
  };
  const proposal = item.form?.proposal;
  return show(article,
    el("div", { class: "row between" },
      statusBadge(item.status),
      el("span", { class: "dim small" }, item.reason)),
    el("p", { class: "text strong" }, item.question),
    (item.form?.transcript || []).map((exchange) => el("p", { class: "text dim" }, `${exchange.question} → ${exchange.answer}`)),
    item.answer !== null ? el("p", { class: "text" }, item.answer) : "",
    proposal ? el("p", { class: "text" }, `proposed: ${proposed(proposal)}`) : "",
    actions(item.trajectory, node, judged, item.form, () => (performance.now() - shown) / 1000),
    el("details", { class: "starter tree-of", ontoggle: (event) => { if (event.currentTarget.open && !tree.firstChild) attempt(openTree); } },
      el("summary", {}, "Tree"), tree));
}

function proposed(step) {
  if (step.kind === "answer") return `answer ${step.text}`;
  const questions = (step.subquestions || []).map((each) => each.text);
  return questions.length ? `ask ${questions.join(" · ")}` : "pass to a copy";
}
