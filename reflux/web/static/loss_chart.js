// The loss of a training against its steps; dashed, that on the rows held out.

import { svg } from "./dom.js";

const WIDTH = 460, HEIGHT = 130, TOP = 8, BOTTOM = 22, LEFT = 44, RIGHT = 86;
const LINES = [["loss", "s-student", "training"], ["eval_loss", "s-amplified", "held out"]];

// `curve` is {loss, eval_loss}, each a list of [step, loss]; null where there is nothing to draw.
export function lossChart(curve) {
  const lines = LINES.filter(([key]) => curve?.[key]?.length > 1);
  if (!lines.length) return null;
  const points = lines.flatMap(([key]) => curve[key]);
  const last = Math.max(...points.map(([step]) => step));
  const top = Math.max(...points.map(([, loss]) => loss)) || 1;
  const x = (step) => LEFT + (step / last) * (WIDTH - LEFT - RIGHT);
  const y = (loss) => TOP + (1 - loss / top) * (HEIGHT - TOP - BOTTOM);
  const parts = [0, top / 2, top].flatMap((loss) => [
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(loss), y2: y(loss), class: "grid" }),
    svg("text", { x: LEFT - 6, y: y(loss) + 4, class: "tick end" }, loss.toPrecision(2)),
  ]);
  parts.push(svg("text", { x: WIDTH - RIGHT, y: HEIGHT - 6, class: "tick end" }, `step ${last}`));
  const ends = lines.map(([key]) => y(curve[key].at(-1)[1]));
  if (ends.length > 1 && Math.abs(ends[0] - ends[1]) < 14) ends[1] = ends[0] + (ends[0] > HEIGHT / 2 ? -14 : 14);
  lines.forEach(([key, color, name], index) => {
    parts.push(svg("polyline", { points: curve[key].map(([step, loss]) => `${x(step)},${y(loss)}`).join(" "), class: `series ${color}` }));
    parts.push(svg("text", { x: WIDTH - RIGHT + 6, y: ends[index] + 4, class: `label ${color}` }, name));
  });
  const spoken = lines.map(([key, , name]) => `${name} from ${curve[key][0][1].toPrecision(3)} to ${curve[key].at(-1)[1].toPrecision(3)}`);
  return svg("svg", { class: "chart", width: WIDTH, height: HEIGHT, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Loss by step: ${spoken.join(", ")}` }, parts);
}
