// Accuracy against the size of the questions: one line per system, labelled at its end.

import { el, svg } from "./dom.js";
import { fixed, interval, table } from "./tables.js";

const HEIGHT = 300, TOP = 12, BOTTOM = 44, LEFT = 44;
const MARKERS = [ // Paths around 0,0: shapes tell the lines apart without color.
  "M-4.5-4.5h9v9h-9z", "M0-6L6 0L0 6L-6 0z", "M0-6L5.5 4.5H-5.5z", "M0 6L5.5-4.5H-5.5z", "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
];
const CIRCLE = "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5z";
const STAR = "M0-7L1.8-2.2L6.7-2.2L2.8.9L4.1 5.7L0 2.9L-4.1 5.7L-2.8.9L-6.7-2.2L-1.8-2.2z";

// The rows of `report.json`; a report without them has one level a round, or no levels at all.
export function levelRows(report) {
  if (report.by_level?.length) return report.by_level;
  const systems = { direct: "base", amplified: "amplified", student: "student" };
  const place = (round) => (unitOf(report) === "round" ? round.round : round.level);
  return (report.rounds || []).flatMap((round) => Object.entries(systems).filter(([key]) => round[key]?.accuracy != null)
    .map(([key, system]) => ({ ...round[key], system, level: place(round), round: key === "direct" ? 0 : round.round })));
}

// What the chart's axis counts: the rounds where their questions have no levels.
export function unitOf(report) {
  const levels = new Set((report.rounds || []).map(({ level }) => level));
  return report.by_level?.length || levels.size > 1 ? "level" : "round";
}

// One series per system, base first; of the amplified systems the last round's.
export function levelSeries(rows) {
  const series = new Map();
  const last = Math.max(...rows.filter(({ system }) => system === "amplified").map(({ round }) => round ?? 0));
  for (const row of rows) {
    if (row.system === "amplified" && (row.round ?? 0) !== last) continue;
    const name = row.system === "student" ? `student r${row.round}` : row.system;
    if (!series.has(name)) series.set(name, { name, rows: [], ...style(name) });
    series.get(name).rows.push(row);
  }
  const rank = ({ name }) => (name === "base" ? 0 : name === "amplified" ? 2 : 1);
  const all = [...series.values()].sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name, "en", { numeric: true }));
  all.forEach((each) => each.rows.sort((a, b) => a.level - b.level));
  return all;
}

function style(name) {
  if (name === "base") return { color: "s-base", marker: CIRCLE };
  if (name === "amplified") return { color: "s-amplified", marker: STAR };
  const number = Number(/\d+$/.exec(name)?.[0] || 0) % MARKERS.length;
  return { color: `s-student-${number}`, marker: MARKERS[number] };
}

export function levelChart(series, width, unit) {
  const levels = [...new Set(series.flatMap((each) => each.rows.map((row) => row.level)))].sort((a, b) => a - b);
  const right = width < 480 ? 106 : 120;
  const x = (level) => LEFT + ((levels.indexOf(level) + 0.5) / levels.length) * (width - LEFT - right);
  const y = (value) => TOP + (1 - value) * (HEIGHT - TOP - BOTTOM);
  const parts = [0, 0.25, 0.5, 0.75, 1].flatMap((value) => [
    svg("line", { x1: LEFT, x2: width - right, y1: y(value), y2: y(value), class: "grid" }),
    svg("text", { x: LEFT - 8, y: y(value) + 4, class: "tick end" }, value.toFixed(2)),
  ]);
  for (const level of levels) parts.push(svg("text", { x: x(level), y: HEIGHT - 26, class: "tick middle" }, level));
  parts.push(svg("text", { x: (LEFT + width - right) / 2, y: HEIGHT - 6, class: "tick middle" }, unit === "level" ? "level: size of the question" : unit));
  const ends = [];
  series.forEach((each, index) => {
    // Slightly apart, so that intervals of equal scores do not cover each other.
    const shift = (index - (series.length - 1) / 2) * 5;
    const points = each.rows.map((row) => [x(row.level) + shift, y(row.accuracy), row]);
    parts.push(svg("polyline", { points: points.map(([px, py]) => `${px},${py}`).join(" "), class: `series ${each.color}` }));
    for (const [px, py, row] of points) {
      if (row.ci95) parts.push(svg("line", { x1: px, x2: px, y1: y(row.ci95[0]), y2: y(row.ci95[1]), class: `error ${each.color}` }));
      parts.push(svg("path", { d: each.marker, transform: `translate(${px} ${py})`, class: `point ${each.color}` },
        svg("title", {}, `${each.name}, ${unit} ${row.level}: ${fixed(row.accuracy)} (${interval(row.ci95)}), n = ${row.n}`)));
    }
    ends.push({ name: each.name, color: each.color, marker: each.marker, y: points.at(-1)[1] });
  });
  for (const end of spread(ends)) {
    parts.push(svg("path", { d: end.marker, transform: `translate(${width - right + 10} ${end.y})`, class: `point ${end.color}` }));
    parts.push(svg("text", { x: width - right + 20, y: end.y + 4, class: `label ${end.color}` }, end.name));
  }
  return svg("svg", { class: "chart", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `Accuracy against ${unit}, one line per system; the table has the figures` }, parts);
}

// Labels at least 16 pixels apart, in the order of their lines.
function spread(ends) {
  const sorted = [...ends].sort((a, b) => a.y - b.y);
  const bottom = HEIGHT - BOTTOM;
  sorted.forEach((end, index) => { if (index) end.y = Math.max(end.y, sorted[index - 1].y + 16); });
  for (let index = sorted.length - 1; index >= 0; index--) {
    const limit = index === sorted.length - 1 ? bottom : sorted[index + 1].y - 16;
    sorted[index].y = Math.min(sorted[index].y, limit);
  }
  return sorted;
}

export function levelTable(series, unit) {
  const levels = [...new Set(series.flatMap((each) => each.rows.map((row) => row.level)))].sort((a, b) => a - b);
  const cell = (row) => row && el("span", {}, fixed(row.accuracy), el("span", { class: "dim small" }, ` ${interval(row.ci95)}`));
  return table(["system", ...levels.map((level) => `${unit} ${level}`)], series.map((each) => [
    each.name, ...levels.map((level) => cell(each.rows.find((row) => row.level === level))),
  ]), `Accuracy by ${unit}, 95% intervals`);
}
