// Tables of figures, and accuracies as bars.

import { el, svg } from "./dom.js";

export function table(headings, rows, caption = null) {
  return el("div", { class: "table" }, el("table", {},
    caption ? el("caption", { class: "dim small" }, caption) : "",
    el("thead", {}, el("tr", {}, headings.map((each) => el("th", { scope: "col" }, each)))),
    el("tbody", {}, rows.map(([first, ...cells]) => el("tr", {}, el("th", { scope: "row" }, first ?? "–"), cells.map((cell) => el("td", {}, cell ?? "–")))))));
}

export const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : Number(value).toFixed(digits));
export const interval = (ci95) => (ci95 ? `${fixed(ci95[0], 2)} – ${fixed(ci95[1], 2)}` : "–");

// An accuracy from 0 to 1 as a bar, and its 95% interval as a thin line.
export function gauge(value, ci95, color) {
  return svg("svg", { class: "gauge", viewBox: "0 0 100 14", preserveAspectRatio: "none", role: "img", "aria-label": `${fixed(value)}, 95% interval ${interval(ci95)}` },
    svg("rect", { x: 0, y: 3, width: 100, height: 8, rx: 2, class: "track" }),
    svg("rect", { x: 0, y: 3, width: 100 * value, height: 8, rx: 2, class: `fill ${color}` }),
    ci95 ? svg("line", { x1: 100 * ci95[0], x2: 100 * ci95[1], y1: 7, y2: 7, class: "whisker", "vector-effect": "non-scaling-stroke" }) : "");
}
