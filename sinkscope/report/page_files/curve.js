import { axes } from "./charts.js";
import { finite, mean } from "./data.js";
import { panel } from "./download.js";
import { canvas, cut, linearTicks, number, short, svg, words } from "./draw.js";
import { gridOf, heads, labelOf, measureNow } from "./headmap.js";
import { set, state, watch } from "./state.js";
import { ink, SERIES } from "./theme.js";
import { tipsIn } from "./tips.js";

const CURVE_TALL = 280, FRAME = { left: 54, right: 128, top: 16, bottom: 40 };
const axis = () => heads().axis;

// Runs of a sweep in lines: one for each setting of what is not along the axis, in the order of the axis.
const curveLines = () => {
  const found = new Map();
  axis().places.forEach((place, run) => {
    if (place === null) return;
    if (!found.has(place.line)) found.set(place.line, []);
    found.get(place.line).push({ run, x: place.x });
  });
  return [...found].map(([label, points]) => ({ label, points: points.sort((a, b) => a.x - b.x) }));
};

const overHeads = (run) => mean(gridOf(run, measureNow().name).values);
const ofHead = (run) => gridOf(run, measureNow().name).values[state.layer * heads().heads.length + state.head];
const lossAt = (run) => axis().losses[run] ?? NaN;

const drawCurve = (width, name, values, head) => {
  const lines = curveLines(), runs = axis().places.map((_, run) => run);
  const all = finite(runs.flatMap((run) => [values(run), ...(head ? [head(run)] : [])])), xs = lines.flatMap((l) => l.points.map((p) => p.x));
  const least = Math.min(...all), most = Math.max(...all), room = (most - least || 1) * 0.06;
  const [low, high] = [Math.min(least - room, least >= 0 && least < most / 2 ? 0 : least - room), most + room];
  const [from, to] = [Math.min(...xs), Math.max(...xs)];
  const box = { left: FRAME.left, right: width - FRAME.right, bottom: CURVE_TALL - FRAME.bottom };
  box.y = (v) => FRAME.top + (box.bottom - FRAME.top) * (1 - (v - low) / (high - low));
  const x = (v) => box.left + ((box.right - box.left) * (v - from)) / (to - from || 1);
  const picture = canvas(width, CURVE_TALL, `${name} along ${axis().name}`);
  axes(picture, box, { y: linearTicks(low, high, 5), x: linearTicks(from, to, 6).map((v) => [x(v), short(v), false]) }, { x: axis().name, at: CURVE_TALL - 5 });
  const path = (points, of) => points.filter((p) => Number.isFinite(of(p.run))).map((p, i) => `${i ? "L" : "M"}${x(p.x).toFixed(1)} ${box.y(of(p.run)).toFixed(1)}`).join("");
  axis().places.forEach((place, run) => {
    if (place !== null || !Number.isFinite(values(run))) return;
    picture.append(svg("path", { d: `M${box.left} ${box.y(values(run))}H${box.right}`, stroke: ink("soft"), "stroke-dasharray": "2 4", "stroke-width": 1.5 }));
    picture.append(words(box.right + 8, box.y(values(run)) + 4, cut(labelOf(run), 16), { fill: ink("soft"), "font-size": 11 }));
  });
  let lowest = -Infinity;
  const ends = lines.map((line, i) => ({ line, i, y: box.y(values(line.points[line.points.length - 1].run)) })).sort((a, b) => a.y - b.y);
  for (const { line, i, y } of ends) {
    const colour = SERIES[i % SERIES.length];
    if (head) picture.append(svg("path", { d: path(line.points, head), fill: "none", stroke: colour, "stroke-width": 1.5, "stroke-dasharray": "5 4" }));
    picture.append(svg("path", { d: path(line.points, values), fill: "none", stroke: colour, "stroke-width": 2.4, "stroke-linejoin": "round" }));
    lowest = Math.max(y, lowest + 13);
    if (line.label) picture.append(words(box.right + 8, lowest + 4, cut(line.label, 17), { fill: colour, "font-size": 11, "font-weight": 600 }));
  }
  for (const { line, i } of ends) for (const p of line.points) {
    if (!Number.isFinite(values(p.run))) continue;
    const here = p.run === state.run;
    picture.append(svg("circle", { cx: x(p.x), cy: box.y(values(p.run)), r: here ? 6 : 4, fill: SERIES[i % SERIES.length], stroke: here ? ink("sink") : ink("paper"), "stroke-width": here ? 3 : 1, class: "cell", "data-tip": "", "data-run": p.run }));
  }
  return picture;
};

const curveRows = (named) => () => [["run", axis().name, ...named.map(([name]) => name)],
  ...axis().places.map((place, run) => [labelOf(run), place === null ? "" : place.x, ...named.map(([, of]) => of(run))])];

const startOne = (id, named, said) => {
  const shown = panel(id, curveRows(named));
  const [, values] = named[0], head = named.length > 1 ? named[1][1] : null;
  watch(["run", "measure", "layer", "head", "theme", "width"], () => {
    shown.box.hidden = !axis() || !finite(axis().places.map((_, run) => values(run))).length;
    if (shown.box.hidden) return;
    const { name, caption } = said();
    shown.title.textContent = `${name} along the sweep`;
    shown.caption.textContent = caption;
    shown.show(drawCurve(Math.max(320, shown.chart.clientWidth), name, values, head));
  });
  shown.chart.addEventListener("click", (event) => {
    const point = event.target.closest("[data-run]");
    if (point) set({ run: Number(point.dataset.run) });
  });
  tipsIn(shown.chart, (point) => {
    const run = Number(point.dataset.run);
    return [labelOf(run), ...named.map(([label, of]) => `${label}: ${number(of(run))}`)].join("\n");
  });
};

// A measure against the numeric axis of a sweep: mean over all heads, and the chosen head; and the loss.
export const startCurve = () => {
  startOne("curve", [["mean over all heads", overHeads], ["chosen head", ofHead]], () => ({
    name: measureNow().label,
    caption: `Solid: mean over all heads. Dashed: layer ${heads().layers[state.layer]}, head ${heads().heads[state.head]}. Click a point to see that run.`,
  }));
  startOne("curve-loss", [["loss", lossAt]], () => ({ name: "Loss a token [nat]", caption: "Mean over tokens, then over prompts. Click a point to see that run." }));
};
