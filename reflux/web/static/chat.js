// The chat on one side, the tree of its last answer growing on the other.

import { eventsOf, json, send, treeEvents } from "./api.js";
import { attempt, el, show, toast } from "./dom.js";
import { TreeModel } from "./tree_model.js";
import { TreeView } from "./tree_view.js";

// The conversation outlives a change of tabs, and what is in it a reload of this tab, too.
const KEPT = "reflux-chat";
const talk = { messages: [], model: null, view: null, trajectory: null, busy: null, ...recalled() };

function recalled() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT)) || {};
    // The server ends what nobody waits for, so what was not whole then never will be.
    for (const said of kept.messages || []) {
      if (said.state === "waiting") Object.assign(said, { state: "done", error: "Stopped: the page was left before the answer was whole." });
    }
    return kept;
  } catch {
    return {};
  }
}

let leaving = false;

function keep() {
  if (leaving) return;
  const { messages, model, trajectory } = talk;
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ messages, model, trajectory }));
  } catch { /* More than a browser keeps: the chat lives as long as its page. */ }
}

// What fails after this fails because the page is left. It may yet stay, as for a download.
addEventListener("beforeunload", () => { keep(); leaving = true; setTimeout(() => { leaving = false; }, 3000); });
addEventListener("pagehide", keep);

export async function open(place) {
  const log = el("div", { class: "log", role: "log", "aria-live": "polite", "aria-label": "Conversation" });
  const tree = el("div", { class: "pane-body" });
  const select = el("select", { "aria-label": "Who answers" });
  const input = el("textarea", { rows: 1, placeholder: "Ask anything", "aria-label": "Question", "data-search": true });
  const button = el("button", { class: "primary round", type: "submit", "aria-label": "Ask" }, "↑");
  const anew = el("button", { type: "button", class: "quiet", onclick: () => { clear(); draw(state); input.focus(); } }, "New chat");
  const form = el("form", { class: "composer" }, input, el("div", { class: "row" }, select, el("span", { class: "grow" }), anew, button));
  const sides = el("div", { class: "sides", role: "group", "aria-label": "Side" });
  const chat = el("div", { class: "pane talk" }, log, form);
  const beside = el("div", { class: "pane beside" }, tree);
  const side = (name) => {
    place.dataset.side = name;
    for (const each of sides.children) each.setAttribute("aria-pressed", each.dataset.side === name);
  };
  for (const [name, title] of [["talk", "Chat"], ["tree", "Tree"]]) {
    sides.append(el("button", { type: "button", "data-side": name, onclick: () => side(name) }, title));
  }
  side("talk");
  show(place, sides, el("div", { class: "split" }, chat, beside));
  const state = { log, tree, button, input, side, anew };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (talk.busy) talk.busy.abort();
    else if (input.value.trim()) ask(state, input.value.trim());
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  input.addEventListener("input", () => fit(input));
  select.addEventListener("change", () => { talk.model = select.value; keep(); });

  state.offered = offer(select);
  draw(state);
  await state.offered;
  if (!talk.view && talk.trajectory) await attempt(() => reload(talk.trajectory));
  if (matchMedia("(min-width: 60rem)").matches) input.focus();
}

async function offer(select) {
  const { data } = await json("/v1/models");
  for (const { id } of data) select.append(el("option", { value: id }, id));
  if (!data.some(({ id }) => id === talk.model)) talk.model = data[0].id;
  select.value = talk.model;
}

function clear() {
  talk.busy?.abort();
  Object.assign(talk, { messages: [], view: null, trajectory: null });
  keep();
}

function fit(input) {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, 200)}px`;
}

function draw(state) {
  const { log, tree, button } = state;
  talk.state = state;
  show(log, talk.messages.length ? talk.messages.map((said) => bubble(said, state)) : welcome());
  log.scrollTop = log.scrollHeight;
  busy(button);
  state.anew.hidden = talk.messages.length === 0;
  if (talk.view) grow(tree, talk.trajectory, talk.view.model);
  else show(tree, el("div", { class: "empty" }, el("h2", {}, "The tree grows here"),
    el("p", {}, "Each question that is put to a copy of the model becomes a node. Open one to see its messages, votes, verdict and cost.")));
}

function welcome() {
  return el("div", { class: "empty" }, el("h2", {}, "Ask the amplified agent"),
    el("p", {}, "An overseer divides your question among copies of the model and puts their answers together."));
}

function busy(button) {
  button.textContent = talk.busy ? "■" : "↑";
  button.setAttribute("aria-label", talk.busy ? "Stop" : "Ask");
}

function bubble(said, state) {
  const mine = said.role === "user";
  const text = el("div", { class: "text" }, said.content);
  const box = el("article", { class: mine ? "bubble mine" : "bubble", "aria-label": mine ? "You" : "Answer" }, text);
  if (!mine) {
    text.classList.toggle("waiting", said.state === "waiting");
    if (said.error) {
      const last = talk.messages.at(-1) === said && !talk.busy;
      box.append(el("p", { class: "bad" }, said.error, last ? " " : "",
        last ? el("button", { type: "button", class: "link", onclick: () => askAgain(said, state) }, "Ask again") : ""));
    }
    if (said.trajectory) {
      box.append(el("div", { class: "meta" }, el("span", {}, said.model), el("button", {
        type: "button", class: "link", onclick: () => attempt(() => look(said, state)),
      }, "Show its tree")));
    }
  }
  return box;
}

function grow(place, trajectory, model) {
  talk.trajectory = trajectory;
  talk.view = new TreeView(place, trajectory, model, (id, did, grows) => (grows ? regrow(id, model.root.question) : attempt(() => reload(id, did === "recomputed"))));
}

// A revision begins to grow; what is returned hears of it.
function regrow(id, question) {
  const said = saidBy(talk.trajectory);
  if (said) said.trajectory = id;
  talk.trajectory = id;
  talk.view = { model: new TreeModel(question) };
  draw(talk.state);
  return (event) => hear(id, event);
}

const saidBy = (trajectory) => talk.messages.find((each) => each.trajectory === trajectory);

async function look(said, state) {
  const found = await json(`/api/trajectories/${encodeURIComponent(said.trajectory)}`);
  grow(state.tree, said.trajectory, TreeModel.from(found.tree));
  state.side("tree");
}

// After an edit: the newest revision is what is shown, and the answer that holds. Whoever looks at
// another tree by the time that it is recomputed stays there.
async function reload(id, late = false) {
  const found = await json(`/api/trajectories/${encodeURIComponent(id)}`);
  const moved = late && talk.trajectory !== id;
  const said = saidBy(moved ? id : talk.trajectory);
  if (said) said.trajectory = id;
  if (said && found.tree.answer !== null) Object.assign(said, { content: found.tree.answer, error: null });
  if (!moved) Object.assign(talk, { trajectory: id, view: { model: TreeModel.from(found.tree) } });
  keep();
  draw(talk.state);
}

function askAgain(said, state) {
  const at = talk.messages.indexOf(said);
  const [{ content }] = talk.messages.splice(at - 1, 2);
  ask(state, content);
}

async function ask(state, question) {
  const abort = (talk.busy = new AbortController());
  talk.messages.push({ role: "user", content: question });
  const said = { role: "assistant", content: "", state: "waiting", model: talk.model, trajectory: null };
  const sent = talk.messages.filter((each) => each.content).map(({ role, content }) => ({ role, content }));
  talk.messages.push(said);
  state.input.value = "";
  fit(state.input);
  draw(state);
  try {
    await state.offered; // Who asks at once has not seen who answers.
    said.model = talk.model;
    const response = await send("/v1/chat/completions", {
      body: { model: said.model, messages: sent, stream: true }, signal: abort.signal,
    });
    said.trajectory = response.headers.get("x-reflux-trajectory");
    talk.trajectory = said.trajectory;
    talk.view = { model: new TreeModel(question) };
    draw(talk.state);
    if (said.model.startsWith("amplified")) talk.state.side("tree");
    keep();
    const grown = follow(said.trajectory, abort.signal);
    for await (const [, data] of eventsOf(response)) {
      if (data === "[DONE]") break;
      const told = JSON.parse(data);
      if (told.error) throw new Error(told.error.message);
      const words = told.choices?.[0]?.delta?.content;
      if (words) { said.content += words; say(said); }
    }
    said.state = "done";
    await grown;
    await settle(said);
  } catch (error) {
    said.error = error.name === "AbortError" ? "Stopped." : error.message;
    if (error.name !== "AbortError" && said.trajectory) await attempt(() => settle(said));
  } finally {
    said.state = "done";
    if (talk.busy === abort) talk.busy = null;
    keep();
    draw(talk.state);
    // Where one side is seen at a time: who is reading a node goes on.
    if (document.getElementById("drawer").hidden) talk.state.side("talk");
  }
}

function say(said) {
  const { log } = talk.state;
  const at = talk.messages.indexOf(said);
  if (log.children[at]) log.children[at].replaceWith(bubble(said, talk.state));
  log.scrollTop = log.scrollHeight;
}

async function follow(trajectory, signal) {
  try {
    for await (const event of treeEvents(trajectory, signal)) {
      hear(trajectory, event);
    }
  } catch (error) {
    if (error.name !== "AbortError") toast(`The tree cannot be followed: ${error.message}`, true);
  }
}

function hear(trajectory, event) {
  if (talk.trajectory === trajectory) (talk.view.hear ? talk.view : talk.view.model).hear(event);
}

// What is recorded has the last word: votes, tools and costs.
async function settle(said) {
  if (talk.trajectory !== said.trajectory) return;
  const found = await json(`/api/trajectories/${encodeURIComponent(said.trajectory)}`);
  talk.view.replace?.(TreeModel.from(found.tree));
}
