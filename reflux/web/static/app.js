// The frame: tabs by the hash of the address, the color theme, and the open view.

import { json } from "./api.js";
import { el, show, attempt } from "./dom.js";
import { closeNode } from "./node.js";

const VIEWS = [
  ["chat", "Chat", () => import("./chat.js")],
  ["trajectories", "Trajectories", () => import("./trajectories.js")],
  ["runs", "Runs", () => import("./runs.js")],
  ["evaluation", "Evaluation", () => import("./evaluation.js")],
  ["review", "Review", () => import("./review.js")],
  ["students", "Students", () => import("./students.js")],
];
const main = document.getElementById("view");
const tabs = document.getElementById("tabs");
let leave = null;
let opened = 0;

function here() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const known = VIEWS.find(([id]) => id === name);
  return known ? [known, rest.map(decoded)] : [VIEWS[0], []];
}

// A shortened or hand-typed address may hold invalid escapes.
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function route() {
  const [[name, title, load], rest] = here();
  const mine = ++opened;
  for (const tab of tabs.children) {
    const chosen = tab.dataset.view === name;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    if (chosen) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  document.title = `${title} · Reflux`;
  const view = await attempt(() => load().catch(unloaded));
  if (mine !== opened || !view) return;
  leave?.();
  closeNode();
  main.dataset.view = name;
  const container = el("section", { class: `view ${name}`, role: "tabpanel", "aria-label": title });
  show(main, container);
  leave = null;
  const close = (await attempt(() => view.open(container, rest))) || null;
  if (mine === opened) leave = close;
  else close?.(); // Another view was opened in the meantime.
}

// A browser remembers a failed import until the page is reloaded.
function unloaded() {
  throw new Error("This view could not be loaded: reload the page once the server answers.");
}

function addTabs() {
  for (const [name, title] of VIEWS) {
    tabs.append(el("a", { role: "tab", href: `#${name}`, "data-view": name, id: `tab-${name}` }, title));
  }
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = [...tabs.children];
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    next.focus();
    next.click();
    event.preventDefault();
  });
}

// The theme follows the system until the button chooses the other one.
function addTheme() {
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (localStorage.getItem("reflux-theme") || (dark.matches ? "dark" : "light")) === "dark";
  const apply = () => {
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
    button.textContent = isDark() ? "☀" : "☾";
    button.setAttribute("aria-label", isDark() ? "Light colors" : "Dark colors");
    button.title = button.getAttribute("aria-label");
  };
  button.addEventListener("click", () => {
    const other = isDark() ? "light" : "dark";
    if (other === (dark.matches ? "dark" : "light")) localStorage.removeItem("reflux-theme");
    else localStorage.setItem("reflux-theme", other);
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
}

document.addEventListener("keydown", (event) => {
  const writing = event.target.closest("input, textarea, select, dialog");
  if (event.key === "/" && !writing) {
    const first = main.querySelector("[data-search]");
    if (first) { first.focus(); event.preventDefault(); }
  }
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) closeNode();
});
addTheme();
addTabs();
addEventListener("hashchange", route);
// Load the other views' files early, so that they open while the server is away.
route().then(() => VIEWS.forEach(([, , load]) => load().catch(() => {})));
attempt(async () => {
  const about = await json("/api/run");
  document.getElementById("where").textContent = about.name;
  document.getElementById("where").title = `Run folder ${about.path}; the agent is ${about.agent}`;
});
