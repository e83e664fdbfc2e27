// Trajectories: searched and filtered by the server, page after page as the list is scrolled.

import { json } from "./api.js";
import { attempt, el, empty, number, show, when } from "./dom.js";
import { TreeModel } from "./tree_model.js";
import { TreeView } from "./tree_view.js";

const STATUSES = ["ok", "unchecked", "truncated", "rejected", "over_budget", "failed", "stopped", "running"];
const kept = { q: "", system: "", split: "", status: "" };

export async function open(place, [chosen]) {
  const list = el("div", { class: "rows", role: "list", "aria-label": "Trajectories" });
  const tree = el("div", { class: "pane-body" });
  const count = el("p", { class: "sum", "aria-live": "polite" });
  const state = { place, list, tree, count, loading: 0, next: null };
  const filters = el("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    el("input", { type: "search", placeholder: "Search questions and answers", "aria-label": "Search questions and answers", "data-search": true, value: kept.q, maxlength: 200, oninput: later((event) => { kept.q = event.target.value; refresh(state); }, 150) }));
  const body = el("div", { class: "scroll-list" }, list);
  body.addEventListener("scroll", () => {
    if (body.scrollTop + body.clientHeight > body.scrollHeight - 800) more(state);
  });
  list.addEventListener("keydown", (event) => walk(event));
  const left = el("div", { class: "pane talk" }, filters, count, body);
  const back = el("button", { type: "button", class: "quiet back", onclick: () => { place.dataset.side = "talk"; } }, "‹ All trajectories");
  show(place, el("div", { class: "split" }, left, el("div", { class: "pane beside" }, back, tree)));
  place.dataset.side = "talk";
  show(tree, empty("No trajectory is open", "Choose one to see its tree."));
  state.body = body;
  const first = refresh(state);
  const facets = await json("/api/trajectory-facets");
  state.all = facets.count;
  for (const [name, title, options] of [["system", "System", facets.systems], ["split", "Split", facets.splits], ["status", "Status", STATUSES]]) {
    filters.append(el("select", { "aria-label": title, onchange: (event) => { kept[name] = event.target.value; refresh(state); } },
      el("option", { value: "" }, title),
      options.map((each) => el("option", { value: each, selected: kept[name] === each }, each.replace("_", " ")))));
  }
  await first;
  tell(state);
  if (chosen) await pick(state, chosen);
}

function later(work, wait) {
  let timer = 0;
  return (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(event), wait);
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

// One request looks at a bounded number of rows, so a rare match may take several.
async function load(state, mine, fresh) {
  state.busy = true;
  await attempt(async () => {
    let before = state.next;
    let got = 0;
    do {
      const asked = new URLSearchParams(Object.entries(kept).filter(([, value]) => value));
      if (before) asked.set("before", before);
      const page = await json(`/api/trajectories?${asked}`);
      if (mine !== state.loading) return;
      if (fresh) { state.list.replaceChildren(); fresh = false; }
      state.list.append(...page.trajectories.map((each) => row(state, each)));
      got += page.trajectories.length;
      state.shown += page.trajectories.length;
      before = state.next = page.next;
      tell(state);
    } while (before !== null && got < 40);
    if (!state.shown) show(state.list, empty("Nothing fits", state.all ? "Loosen the search, or the filters." : "What is asked, in the chat or by any command on this run folder, is listed here."));
  });
  if (mine === state.loading) state.busy = false;
}

function tell(state) {
  const filtered = Object.values(kept).some(Boolean);
  const plus = state.next !== null ? "+" : "";
  const all = state.all === undefined ? "" : number(state.all);
  state.count.textContent = filtered ? `${number(state.shown)}${plus} found${all && ` of ${all}`}` : all && `${all} trajectories`;
}

function row(state, each) {
  const meta = [each.system, each.round >= 0 && each.round !== null ? `round ${each.round}` : null, each.split, when(each.created)].filter(Boolean);
  return el("div", { role: "listitem" }, el("button", { type: "button", class: "trow", "data-id": each.id, onclick: () => attempt(() => pick(state, each.id)) },
    el("span", { class: `dot ${each.status}`, title: each.status.replace("_", " ") }),
    el("span", { class: "said" },
      el("span", { class: "line1" }, each.text),
      el("span", { class: "line1 dim" }, each.answer ?? each.status.replace("_", " ")),
      el("span", { class: "bits" }, meta.map((bit) => el("span", {}, bit))))));
}

async function pick(state, id) {
  const found = await json(`/api/trajectories/${encodeURIComponent(id)}`);
  history.replaceState(null, "", `#trajectories/${encodeURIComponent(id)}`);
  for (const each of state.list.querySelectorAll(".trow")) each.toggleAttribute("aria-current", each.dataset.id === id);
  grow(state, found.trajectory, TreeModel.from(found.tree));
  state.place.dataset.side = "tree";
}

// What is returned hears of the tree's growth, as long as no other one is looked at.
function grow(state, id, model) {
  state.looked = id;
  const view = new TreeView(state.tree, id, model, (changed, did, grows) => {
    if (grows) return grow(state, changed, new TreeModel(model.root.question));
    return did === "recomputed" && state.looked !== changed ? null : attempt(() => pick(state, changed));
  });
  return (event) => view.hear(event);
}

function walk(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const item = step && event.target.closest("[role=listitem]");
  const next = item && (step > 0 ? item.nextElementSibling : item.previousElementSibling);
  if (!next) return;
  next.firstChild.focus();
  event.preventDefault();
}
