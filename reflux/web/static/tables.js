// Tables of figures, and the interval of an accuracy as a small bar.

import { el, svg } from "./dom.js";

export function table(headings, rows) {
  return el("div", { class: "table" }, el("table", {},
    el("thead", {}, el("tr", {}, headings.map((each) => el("th", { scope: "col" }, each)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell ?? "–")))))));
}

export const fixed = (value, digits = 3) => (value === null || value === undefined ? "–" : Number(value).toFixed(digits));
export const interval = (ci95) => (ci95 ? `${fixed(ci95[0], 2)} – ${fixed(ci95[1], 2)}` : "–");

// Accuracy from 0 to 1: the bar is the value, the thin line its 95% interval.
export function gauge(value, ci95, colour) {
  const chart = svg("svg", { class: "gauge", viewBox: "0 0 100 14", preserveAspectRatio: "none", role: "img", "aria-label": `${fixed(value)}, 95% interval ${interval(ci95)}` },
    svg("rect", { x: 0, y: 3, width: 100, height: 8, rx: 2, class: "track" }),
    svg("rect", { x: 0, y: 3, width: 100 * value, height: 8, rx: 2, class: `fill ${colour}` }),
    ci95 ? svg("line", { x1: 100 * ci95[0], x2: 100 * ci95[1], y1: 7, y2: 7, class: "whisker", "vector-effect": "non-scaling-stroke" }) : "");
  return chart;
}
