// Trajectories: searched and filtered by the server, loaded page by page while scrolling.

import { json } from "./api.js";
import { attempt, el, empty, number, show, when } from "./dom.js";
import { statusMark, statusWord } from "./status.js";
import { TreeModel } from "./tree_model.js";
import { TreeView } from "./tree_view.js";

const STATUSES = ["ok", "unchecked", "truncated", "rejected", "over_budget", "failed", "stopped", "running"];
const kept = { q: "", system: "", split: "", status: "" };

export async function open(container, [chosen]) {
  const list = el("div", { class: "rows", role: "list", "aria-label": "Trajectories" });
  const tree = el("div", { class: "pane-body" });
  const count = el("p", { class: "sum", "aria-live": "polite" });
  const state = { container, list, tree, count, loading: 0, next: null };
  const filters = el("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    el("input", { type: "search", placeholder: "Search questions and answers", "aria-label": "Search questions and answers", "data-search": true, value: kept.q, maxlength: 200, oninput: debounced((event) => { kept.q = event.target.value; refresh(state); }, 150) }));
  const body = el("div", { class: "scroll-list" }, list);
  body.addEventListener("scroll", () => {
    if (body.scrollTop + body.clientHeight > body.scrollHeight - 800) more(state);
  });
  list.addEventListener("keydown", moveFocus);
  const left = el("div", { class: "pane talk" }, filters, count, body);
  const back = el("button", { type: "button", class: "quiet back", onclick: () => { container.dataset.side = "talk"; } }, "‹ All trajectories");
  show(container, el("div", { class: "split" }, left, el("div", { class: "pane beside" }, back, tree)));
  container.dataset.side = "talk";
  show(tree, empty("No trajectory selected", "Select one to see its tree."));
  Object.assign(state, { body, filters });
  const first = refresh(state);
  const facets = await json("/api/trajectory-facets");
  state.all = facets.count;
  for (const [name, title, options] of [["system", "System", facets.systems], ["split", "Split", facets.splits], ["status", "Status", STATUSES]]) {
    filters.append(el("select", { "aria-label": title, onchange: (event) => { kept[name] = event.target.value; refresh(state); } },
      el("option", { value: "" }, title),
      options.map((each) => el("option", { value: each, selected: kept[name] === each }, name === "status" ? statusWord(each) : each.replace("_", " ")))));
  }
  await first;
  tell(state);
  if (chosen) await pick(state, chosen);
}

function debounced(action, wait) {
  let timer = 0;
  return (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(event), wait);
  };
}

async function refresh(state) {
  state.loading += 1;
  state.next = null;
  state.shown = 0;
  state.body.scrollTop = 0;
  await load(state, state.loading, true);
}

function more(state) {
  if (state.next !== null && !state.busy) load(state, state.loading, false);
}

// One request reads a bounded number of rows, so a rare match may take several requests.
async function load(state, mine, fresh) {
  state.busy = true;
  await attempt(async () => {
    let before = state.next;
    let count = 0;
    do {
      const query = new URLSearchParams(Object.entries(kept).filter(([, value]) => value));
      if (before) query.set("before", before);
      const page = await json(`/api/trajectories?${query}`);
      if (mine !== state.loading) return;
      if (fresh) { state.list.replaceChildren(); fresh = false; }
      state.list.append(...page.trajectories.map((each) => row(state, each)));
      count += page.trajectories.length;
      state.shown += page.trajectories.length;
      before = state.next = page.next;
      tell(state);
    } while (before !== null && count < 40);
    if (!state.shown) show(state.list, none(state));
  });
  if (mine === state.loading) state.busy = false;
}

function none(state) {
  if (!state.all) return empty("No trajectories yet", "Questions from the chat and from commands on this run folder are listed here.");
  return empty("No matches.", "", el("button", { type: "button", onclick: () => clear(state) }, "Clear filters"));
}

function clear(state) {
  for (const name of Object.keys(kept)) kept[name] = "";
  for (const control of state.filters.elements) control.value = "";
  refresh(state);
}

function tell(state) {
  const filtered = Object.values(kept).some(Boolean);
  const plus = state.next !== null ? "+" : "";
  const all = state.all === undefined ? "" : number(state.all);
  state.count.textContent = filtered ? `${number(state.shown)}${plus} found${all && ` of ${all}`}` : all && `${all} ${state.all === 1 ? "trajectory" : "trajectories"}`;
}

function row(state, each) {
  const meta = [each.status === "ok" ? null : statusWord(each.status), each.system, each.round >= 0 && each.round !== null ? `round ${each.round}` : null, each.split, when(each.created)].filter(Boolean);
  return el("div", { role: "listitem" }, el("button", { type: "button", class: "trow", "data-id": each.id, onclick: () => attempt(() => pick(state, each.id)) },
    statusMark(each.status),
    el("span", { class: "said" },
      el("span", { class: "line1" }, each.text),
      el("span", { class: "line1 dim" }, each.answer ?? statusWord(each.status)),
      el("span", { class: "bits" }, meta.map((bit) => el("span", {}, bit))))));
}

async function pick(state, id) {
  const body = await json(`/api/trajectories/${encodeURIComponent(id)}`);
  history.replaceState(null, "", `#trajectories/${encodeURIComponent(id)}`);
  for (const each of state.list.querySelectorAll(".trow")) each.toggleAttribute("aria-current", each.dataset.id === id);
  grow(state, body.trajectory, TreeModel.from(body.tree));
  state.container.dataset.side = "tree";
}

// Shows a tree; returns a listener for the events of its growth.
function grow(state, id, model) {
  state.selected = id;
  const view = new TreeView(state.tree, id, model, (changed, did, grows) => {
    if (grows) return grow(state, changed, new TreeModel(model.root.question));
    return did === "recomputed" && state.selected !== changed ? null : attempt(() => pick(state, changed));
  });
  return (event) => view.apply(event);
}

function moveFocus(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const item = step && event.target.closest("[role=listitem]");
  const next = item && (step > 0 ? item.nextElementSibling : item.previousElementSibling);
  if (!next) return;
  next.firstChild.focus();
  event.preventDefault();
}
