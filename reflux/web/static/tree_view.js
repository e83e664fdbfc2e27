// The tree on the page: an outline that grows, read and walked with the mouse or the arrow keys.

import { el, number } from "./dom.js";
import { STATUS, openNode } from "./node.js";

const BATCH = 100; // Children that are drawn before a person asks for more.

export class TreeView {
  constructor(place, trajectory, model, changed = null) {
    this.trajectory = trajectory;
    this.model = model;
    this.changed = changed;
    this.items = new Map();
    this.closed = new Set();
    this.more = new Map();
    this.sum = el("p", { class: "sum" });
    this.list = el("ul", { class: "tree", role: "tree", "aria-label": "Tree of the answer" });
    this.list.addEventListener("keydown", (event) => this.walk(event));
    place.replaceChildren(this.sum, this.list);
    this.list.append(this.item(""));
    this.items.get("").line.tabIndex = 0;
    this.count();
  }

  hear(event) {
    for (const path of new Set(this.model.hear(event))) this.draw(path);
    this.count();
  }

  replace(model) {
    this.model = model;
    this.items.clear();
    this.list.replaceChildren(this.item(""));
    this.items.get("").line.tabIndex = 0;
    this.count();
  }

  // Once a frame at the most: a large tree has thousands of events.
  count() {
    this.counting ??= requestAnimationFrame(() => { this.counting = null; this.tell(); });
  }

  tell() {
    const { nodes, calls, tokens, money } = this.model.totals();
    const words = [`${number(nodes)} ${nodes === 1 ? "node" : "nodes"}`, `${number(calls)} calls`, `${number(tokens)} tokens`];
    if (money) words.push(`${money.toPrecision(2)} spent`);
    if (this.model.writing) words.push(this.model.writing);
    this.sum.textContent = words.join(" · ");
  }

  item(path) {
    const twist = el("button", { class: "twist", type: "button", tabindex: -1, "aria-hidden": true, onclick: (event) => { event.stopPropagation(); this.fold(path); } });
    const line = el("div", { class: "node", role: "treeitem", tabindex: -1, "data-path": path, onclick: () => this.open(path) });
    const group = el("ul", { role: "group" });
    const item = el("li", { role: "none" }, el("div", { class: "line" }, twist, line), group);
    this.items.set(path, { item, line, group, twist });
    this.draw(path);
    return item;
  }

  draw(path) {
    const held = this.items.get(path);
    if (!held) return; // Below a parent that shows only some of its children.
    const told = this.model.nodes.get(path);
    const { line, group, twist } = held;
    const bits = [];
    if (told.by) bits.push(el("span", { class: `by ${told.by === "H" ? "h" : ""}` }, told.by));
    if (told.verdict) bits.push(el("span", { class: "h" }, told.verdict));
    if (told.votes > 1) bits.push(el("span", {}, `${told.votes} votes`));
    if (told.tools) bits.push(el("span", {}, `${told.tools} tool calls`));
    if (told.tokens) bits.push(el("span", {}, `${number(told.tokens)} tokens`));
    line.replaceChildren(
      el("span", { class: `dot ${told.status}`, title: STATUS[told.status] || told.status }),
      el("span", { class: "said" },
        el("span", { class: "question" }, told.question || "…"),
        told.answer !== null ? el("span", { class: "answer" }, told.answer) : "",
        told.error ? el("span", { class: "error" }, told.error) : "",
        bits.length ? el("span", { class: "bits" }, bits) : ""));
    line.setAttribute("aria-label", `${told.question}: ${told.answer ?? STATUS[told.status] ?? ""}`);
    const closed = this.closed.has(path);
    twist.classList.toggle("none", told.children.length === 0);
    twist.textContent = closed ? "▸" : "▾";
    if (told.children.length) line.setAttribute("aria-expanded", !closed);
    group.hidden = closed;
    if (!closed) this.grow(path, told, group);
  }

  grow(path, told, group) {
    const most = this.more.get(path) || BATCH;
    const shown = told.children.slice(0, most);
    shown.forEach((child, at) => {
      const item = this.items.get(child)?.item || this.item(child);
      if (group.children[at] !== item) group.insertBefore(item, group.children[at] || null);
    });
    while (group.children.length > shown.length) group.lastChild.remove();
    const hidden = told.children.length - shown.length;
    if (hidden > 0) {
      group.append(el("li", { role: "none" }, el("button", {
        type: "button", class: "quiet", onclick: () => { this.more.set(path, most + 10 * BATCH); this.draw(path); },
      }, `${number(hidden)} more`)));
    }
  }

  fold(path, close = !this.closed.has(path)) {
    if (close) this.closed.add(path);
    else this.closed.delete(path);
    this.draw(path);
  }

  open(path) {
    this.focus(path);
    for (const { line } of this.items.values()) line.removeAttribute("aria-selected");
    this.items.get(path).line.setAttribute("aria-selected", true);
    openNode(this.trajectory, path, this.changed);
  }

  focus(path) {
    for (const { line } of this.items.values()) line.tabIndex = -1;
    const { line } = this.items.get(path);
    line.tabIndex = 0;
    line.focus({ preventScroll: false });
  }

  walk(event) {
    const line = event.target.closest("[role=treeitem]");
    if (!line) return;
    const path = line.dataset.path;
    const told = this.model.nodes.get(path);
    const lines = [...this.list.querySelectorAll("[role=treeitem]")].filter((each) => each.offsetParent);
    const at = lines.indexOf(line);
    const go = (other) => other && this.focus(other.dataset.path);
    switch (event.key) {
      case "ArrowDown": go(lines[at + 1]); break;
      case "ArrowUp": go(lines[at - 1]); break;
      case "Home": go(lines[0]); break;
      case "End": go(lines.at(-1)); break;
      case "ArrowRight":
        if (this.closed.has(path)) this.fold(path, false);
        else if (told.children.length) go(lines[at + 1]);
        break;
      case "ArrowLeft":
        if (told.children.length && !this.closed.has(path)) this.fold(path, true);
        else if (path) this.focus(path.slice(0, path.lastIndexOf("/")));
        break;
      case "Enter": case " ": this.open(path); break;
      default: return;
    }
    event.preventDefault();
  }
}
