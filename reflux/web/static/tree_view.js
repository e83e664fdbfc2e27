// The tree as an outline, navigated with the mouse or the arrow keys.

import { el, number } from "./dom.js";
import { openNode } from "./node.js";
import { statusMark, statusWord } from "./status.js";

const BATCH = 100; // Children shown before "more" is clicked.

export class TreeView {
  constructor(container, trajectory, model, changed = null) {
    this.trajectory = trajectory;
    this.model = model;
    this.changed = changed;
    this.items = new Map();
    this.closed = new Set();
    this.more = new Map();
    this.sum = el("p", { class: "sum" });
    this.list = el("ul", { class: "tree", role: "tree", "aria-label": "Tree of the answer" });
    this.list.addEventListener("keydown", (event) => this.moveFocus(event));
    container.replaceChildren(this.sum, this.list);
    this.list.append(this.item(""));
    this.items.get("").line.tabIndex = 0;
    this.count();
  }

  apply(event) {
    for (const path of new Set(this.model.apply(event))) this.draw(path);
    this.count();
  }

  replace(model) {
    this.model = model;
    this.items.clear();
    this.list.replaceChildren(this.item(""));
    this.items.get("").line.tabIndex = 0;
    this.count();
  }

  // At most once a frame: a large tree has thousands of events.
  count() {
    this.counting ??= requestAnimationFrame(() => { this.counting = null; this.showTotals(); });
  }

  showTotals() {
    const { nodes, calls, tokens, money } = this.model.totals();
    const parts = [`${number(nodes)} ${nodes === 1 ? "node" : "nodes"}`, `${number(calls)} calls`, `${number(tokens)} tokens`];
    if (money) parts.push(`${money.toPrecision(2)} spent`);
    if (this.model.writing) parts.push(this.model.writing);
    this.sum.textContent = parts.join(" · ");
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
    const shown = this.items.get(path);
    if (!shown) return; // Its parent shows only some of its children.
    const node = this.model.nodes.get(path);
    const { line, group, twist } = shown;
    const bits = [];
    if (!["ok", "running"].includes(node.status)) bits.push(el("span", {}, statusWord(node.status)));
    if (node.by) bits.push(el("span", { class: `by ${node.by === "overseer" ? "h" : ""}` }, node.by));
    if (node.verdict) bits.push(el("span", { class: "h" }, node.verdict));
    if (node.votes > 1) bits.push(el("span", {}, `${node.votes} votes`));
    if (node.tools) bits.push(el("span", {}, `${node.tools} tool calls`));
    const cost = ({ calls, tokens }) => `${number(calls)} ${calls === 1 ? "call" : "calls"}, ${number(tokens)} tokens`;
    if (node.calls) bits.push(el("span", {}, (node.children.length ? "own: " : "") + cost(node)));
    if (node.children.length) bits.push(el("span", {}, `in all: ${cost(this.model.inAll(path))}`));
    const decomposition = this.model.decomposition(path);
    line.replaceChildren(
      statusMark(node.status),
      el("span", { class: "said" },
        decomposition ? el("span", { class: "bits" }, decomposition) : "",
        el("span", { class: "question" }, node.question || "…"),
        node.answer !== null ? el("span", { class: "answer" }, node.answer) : "",
        node.error ? el("span", { class: "error" }, node.error) : "",
        node.note ? el("span", { class: "note dim" }, node.note) : "",
        bits.length ? el("span", { class: "bits" }, bits) : ""));
    line.setAttribute("aria-label", `${node.question}: ${node.answer ?? statusWord(node.status)}`);
    const closed = this.closed.has(path);
    twist.classList.toggle("none", node.children.length === 0);
    twist.textContent = closed ? "▸" : "▾";
    if (node.children.length) line.setAttribute("aria-expanded", !closed);
    group.hidden = closed;
    if (!closed) this.grow(path, node, group);
  }

  grow(path, node, group) {
    const limit = this.more.get(path) || BATCH;
    const shown = node.children.slice(0, limit);
    shown.forEach((child, index) => {
      const item = this.items.get(child)?.item || this.item(child);
      if (group.children[index] !== item) group.insertBefore(item, group.children[index] || null);
    });
    while (group.children.length > shown.length) group.lastChild.remove();
    const hidden = node.children.length - shown.length;
    if (hidden > 0) {
      group.append(el("li", { role: "none" }, el("button", {
        type: "button", class: "quiet", onclick: () => { this.more.set(path, limit + 10 * BATCH); this.draw(path); },
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

  moveFocus(event) {
    const line = event.target.closest("[role=treeitem]");
    if (!line) return;
    const path = line.dataset.path;
    const node = this.model.nodes.get(path);
    const lines = [...this.list.querySelectorAll("[role=treeitem]")].filter((each) => each.offsetParent);
    const index = lines.indexOf(line);
    const go = (other) => other && this.focus(other.dataset.path);
    switch (event.key) {
      case "ArrowDown": go(lines[index + 1]); break;
      case "ArrowUp": go(lines[index - 1]); break;
      case "Home": go(lines[0]); break;
      case "End": go(lines.at(-1)); break;
      case "ArrowRight":
        if (this.closed.has(path)) this.fold(path, false);
        else if (node.children.length) go(lines[index + 1]);
        break;
      case "ArrowLeft":
        if (node.children.length && !this.closed.has(path)) this.fold(path, true);
        else if (path) this.focus(path.slice(0, path.lastIndexOf("/")));
        break;
      case "Enter": case " ": this.open(path); break;
      default: return;
    }
    event.preventDefault();
  }
}
