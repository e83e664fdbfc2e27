// The chat, and beside it the tree of the last answer.

import { eventsOf, json, send, treeEvents } from "./api.js";
import { attempt, el, show, toast } from "./dom.js";
import { TreeModel } from "./tree_model.js";
import { TreeView } from "./tree_view.js";

// The conversation survives a change of tabs; its messages survive a reload, too.
const KEPT = "reflux-chat";
const talk = { messages: [], model: null, view: null, trajectory: null, busy: null, ...recalled() };

// What can be expected of a model, by its name.
const about = {};

function recalled() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT)) || {};
    // The server stops an answer when its client leaves, so it will never be complete.
    for (const message of kept.messages || []) {
      if (message.state === "waiting") Object.assign(message, { state: "done", error: "Stopped: the page was closed before the answer was complete." });
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
  } catch { /* Over the storage limit: the chat lives as long as its page. */ }
}

// Later failures come from leaving the page. The page may also stay, as for a download.
addEventListener("beforeunload", () => { keep(); leaving = true; setTimeout(() => { leaving = false; }, 3000); });
addEventListener("pagehide", keep);

export async function open(container) {
  const log = el("div", { class: "log", role: "log", "aria-live": "polite", "aria-label": "Conversation" });
  const tree = el("div", { class: "pane-body" });
  const select = el("select", { "aria-label": "Model" });
  const input = el("textarea", { rows: 1, placeholder: "Ask anything", "aria-label": "Question", "data-search": true });
  const button = el("button", { class: "primary round", type: "submit", "aria-label": "Ask" }, "↑");
  const newChat = el("button", { type: "button", class: "quiet", onclick: () => { clear(); draw(state); input.focus(); } }, "New chat");
  const form = el("form", { class: "composer" }, input, el("div", { class: "row" }, select, el("span", { class: "grow" }), newChat, button));
  const sides = el("div", { class: "sides", role: "group", "aria-label": "Side" });
  const chat = el("div", { class: "pane talk" }, log, form);
  const beside = el("div", { class: "pane beside" }, tree);
  const side = (name) => {
    container.dataset.side = name;
    for (const each of sides.children) each.setAttribute("aria-pressed", each.dataset.side === name);
  };
  for (const [name, title] of [["talk", "Chat"], ["tree", "Tree"]]) {
    sides.append(el("button", { type: "button", "data-side": name, onclick: () => side(name) }, title));
  }
  side("talk");
  show(container, sides, el("div", { class: "split" }, chat, beside));
  const state = { log, tree, button, input, side, newChat };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (talk.busy) talk.busy.abort();
    else if (input.value.trim()) ask(state, input.value.trim());
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  input.addEventListener("input", () => fit(input));
  select.addEventListener("change", () => { talk.model = select.value; keep(); if (!talk.messages.length) draw(state); });

  state.offered = offer(select);
  draw(state);
  await state.offered;
  if (!talk.messages.length) draw(state);
  if (!talk.view && talk.trajectory) await attempt(() => reload(talk.trajectory));
  if (matchMedia("(min-width: 60rem)").matches) input.focus();
}

async function offer(select) {
  const { data } = await json("/v1/models");
  for (const { id, description } of data) {
    select.append(el("option", { value: id }, id));
    about[id] = description;
  }
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
  show(log, talk.messages.length ? talk.messages.map((message) => bubble(message, state)) : welcome());
  log.scrollTop = log.scrollHeight;
  busy(button);
  state.newChat.hidden = talk.messages.length === 0;
  if (talk.view) grow(tree, talk.trajectory, talk.view.model);
  else show(tree, el("div", { class: "empty" }, el("h2", {}, "The tree appears here"),
    el("p", {}, "Each sub-question becomes a node. Open one to see its messages, votes, verdict and cost.")));
}

function welcome() {
  return el("div", { class: "empty" }, el("h2", {}, "Ask the amplified agent"),
    el("p", {}, "An overseer splits your question, copies of the agent answer the parts, and the overseer combines the answers."),
    about[talk.model] ? el("p", {}, about[talk.model]) : "");
}

function busy(button) {
  button.textContent = talk.busy ? "■" : "↑";
  button.setAttribute("aria-label", talk.busy ? "Stop" : "Ask");
}

function bubble(message, state) {
  const mine = message.role === "user";
  const text = el("div", { class: "text" }, message.content);
  const box = el("article", { class: mine ? "bubble mine" : "bubble", "aria-label": mine ? "You" : "Answer" }, text);
  if (!mine) {
    text.classList.toggle("waiting", message.state === "waiting");
    if (message.error) {
      const last = talk.messages.at(-1) === message && !talk.busy;
      box.append(el("p", { class: "bad" }, message.error, last ? " " : "",
        last ? el("button", { type: "button", class: "link", onclick: () => askAgain(message, state) }, "Ask again") : ""));
    }
    if (message.trajectory) {
      box.append(el("div", { class: "meta" }, el("span", {}, message.model), el("button", {
        type: "button", class: "link", onclick: () => attempt(() => showTree(message, state)),
      }, "Show tree")));
    }
  }
  return box;
}

function grow(container, trajectory, model) {
  talk.trajectory = trajectory;
  talk.view = new TreeView(container, trajectory, model, (id, did, grows) => (grows ? regrow(id, model.root.question) : attempt(() => reload(id, did === "recomputed"))));
}

// Shows a growing revision; returns a listener for its events.
function regrow(id, question) {
  const message = messageOf(talk.trajectory);
  if (message) message.trajectory = id;
  talk.trajectory = id;
  talk.view = { model: new TreeModel(question) };
  draw(talk.state);
  return (event) => apply(id, event);
}

const messageOf = (trajectory) => talk.messages.find((each) => each.trajectory === trajectory);

async function showTree(message, state) {
  const body = await json(`/api/trajectories/${encodeURIComponent(message.trajectory)}`);
  grow(state.tree, message.trajectory, TreeModel.from(body.tree));
  state.side("tree");
}

// After an edit, shows the newest revision and its answer, unless another tree was opened since.
async function reload(id, late = false) {
  const body = await json(`/api/trajectories/${encodeURIComponent(id)}`);
  const moved = late && talk.trajectory !== id;
  const message = messageOf(moved ? id : talk.trajectory);
  if (message) message.trajectory = id;
  if (message && body.tree.answer !== null) Object.assign(message, { content: body.tree.answer, error: null });
  if (!moved) Object.assign(talk, { trajectory: id, view: { model: TreeModel.from(body.tree) } });
  keep();
  draw(talk.state);
}

function askAgain(message, state) {
  const index = talk.messages.indexOf(message);
  const [{ content }] = talk.messages.splice(index - 1, 2);
  ask(state, content);
}

async function ask(state, question) {
  const abort = (talk.busy = new AbortController());
  talk.messages.push({ role: "user", content: question });
  const message = { role: "assistant", content: "", state: "waiting", model: talk.model, trajectory: null };
  const sent = talk.messages.filter((each) => each.content).map(({ role, content }) => ({ role, content }));
  talk.messages.push(message);
  state.input.value = "";
  fit(state.input);
  draw(state);
  try {
    await state.offered; // The list of models may still be loading.
    message.model = talk.model;
    const response = await send("/v1/chat/completions", {
      body: { model: message.model, messages: sent, stream: true }, signal: abort.signal,
    });
    message.trajectory = response.headers.get("x-reflux-trajectory");
    talk.trajectory = message.trajectory;
    talk.view = { model: new TreeModel(question) };
    draw(talk.state);
    if (message.model.startsWith("amplified")) talk.state.side("tree");
    keep();
    const followed = follow(message.trajectory, abort.signal);
    for await (const [, data] of eventsOf(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const text = chunk.choices?.[0]?.delta?.content;
      if (text) { message.content += text; redraw(message); }
    }
    message.state = "done";
    await followed;
    await settle(message);
  } catch (error) {
    message.error = error.name === "AbortError" ? "Stopped." : error.message;
    if (error.name !== "AbortError" && message.trajectory) await attempt(() => settle(message));
  } finally {
    message.state = "done";
    if (talk.busy === abort) talk.busy = null;
    keep();
    draw(talk.state);
    // On a narrow screen, show the answer unless a node is open.
    if (document.getElementById("drawer").hidden) talk.state.side("talk");
  }
}

function redraw(message) {
  const { log } = talk.state;
  const index = talk.messages.indexOf(message);
  if (log.children[index]) log.children[index].replaceWith(bubble(message, talk.state));
  log.scrollTop = log.scrollHeight;
}

async function follow(trajectory, signal) {
  try {
    for await (const event of treeEvents(trajectory, signal)) {
      apply(trajectory, event);
    }
  } catch (error) {
    if (error.name !== "AbortError") toast(`The tree cannot be followed: ${error.message}`, true);
  }
}

function apply(trajectory, event) {
  if (talk.trajectory === trajectory) (talk.view.apply ? talk.view : talk.view.model).apply(event);
}

// The record has the votes, tools and costs.
async function settle(message) {
  if (talk.trajectory !== message.trajectory) return;
  const body = await json(`/api/trajectories/${encodeURIComponent(message.trajectory)}`);
  talk.view.replace?.(TreeModel.from(body.tree));
}
