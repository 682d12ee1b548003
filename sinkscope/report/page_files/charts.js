import { finite, largest } from "./data.js";
import { panel } from "./download.js";
import { canvas, every, linearTicks, number, short, svg, words } from "./draw.js";
import { labelOf } from "./headmap.js";
import { promptNow, tokensOf } from "./rows.js";
import { state, watch } from "./state.js";
import { ink, SERIES } from "./theme.js";
import { tipsIn } from "./tips.js";

const HEIGHT = 190, AXES = { left: 46, right: 8, top: 10, bottom: 36 };
const CHARTS = [
  { id: "chart-mass", variable: "key_mass", colour: SERIES[0], name: "attention" },
  { id: "chart-value", variable: "value_norm", colour: SERIES[2], name: "value norm" },
  { id: "chart-entropy", variable: "entropy", colour: SERIES[6], name: "entropy" },
];

// Axes of a chart by position: ticks, rules, labels; gives the two scales.
export const axes = (picture, box, ticks, labels) => {
  for (const v of ticks.y) {
    const y = box.y(v);
    picture.append(svg("path", { d: `M${box.left} ${y}H${box.right}`, stroke: ink("line") }));
    picture.append(words(box.left - 6, y + 4, short(v), { "text-anchor": "end", fill: ink("soft"), "font-size": 11 }));
  }
  for (const [x, text, turned] of ticks.x) {
    const turn = turned ? { transform: `rotate(-50 ${x} ${box.bottom + 14})`, "text-anchor": "end" } : { "text-anchor": "middle" };
    picture.append(words(x, box.bottom + 15, text, { fill: ink("soft"), "font-size": 11, ...turn }));
  }
  if (labels.x) picture.append(words((box.left + box.right) / 2, labels.at, labels.x, { "text-anchor": "middle", fill: ink("soft") }));
};

// Bars of the run; where two are compared, dots for the other.
const bars = (chart, width) => {
  const values = tokensOf(state.run, chart.variable), other = state.against === null ? null : tokensOf(state.against, chart.variable);
  const top = largest([...values, ...(other || [])]) * 1.04, count = values.length;
  const box = { left: AXES.left, right: width - AXES.right, bottom: HEIGHT - AXES.bottom };
  const step = (box.right - box.left) / count;
  box.y = (v) => AXES.top + (box.bottom - AXES.top) * (1 - v / top);
  const picture = canvas(width, HEIGHT, `${chart.name} by position`);
  const x = every(count, box.right - box.left, 34).map((i) => [box.left + (i + 0.5) * step, i, false]);
  axes(picture, box, { y: linearTicks(0, top, 4), x }, { x: "position", at: HEIGHT - 4 });
  values.forEach((v, i) => {
    const left = box.left + i * step;
    if (Number.isFinite(v)) picture.append(svg("rect", { x: left + step * 0.1, y: box.y(v), width: step * 0.8, height: box.bottom - box.y(v), fill: chart.colour }));
    if (other && Number.isFinite(other[i])) picture.append(svg("circle", { cx: left + step / 2, cy: box.y(other[i]), r: Math.min(3, step / 2), fill: SERIES[1] }));
    picture.append(svg("rect", { x: left, y: AXES.top, width: step, height: box.bottom - AXES.top, fill: "transparent", "data-tip": "", "data-i": i }));
  });
  return picture;
};

export const startCharts = () => {
  for (const chart of CHARTS) {
    const rows = () => {
      const values = tokensOf(state.run, chart.variable), other = state.against === null ? null : tokensOf(state.against, chart.variable);
      const names = [`${chart.name}`, ...(other ? [`${chart.name} (${labelOf(state.against)})`] : [])];
      return [["position", "token", ...names], ...promptNow().tokens.map((t, i) => [i, t, values[i], ...(other ? [other[i]] : [])])];
    };
    const shown = panel(chart.id, rows);
    watch(["run", "against", "layer", "head", "prompt", "theme", "width"], () => {
      const values = tokensOf(state.run, chart.variable), other = state.against === null || tokensOf(state.against, chart.variable);
      shown.box.hidden = !values || !other || !finite(values).length;
      if (shown.box.hidden) return;
      shown.caption.textContent = state.against === null ? "" : `Bars: ${labelOf(state.run)}. Dots: ${labelOf(state.against)}.`;
      shown.show(bars(chart, Math.max(240, shown.chart.clientWidth)));
    });
    tipsIn(shown.chart, (cell) => {
      const i = Number(cell.dataset.i), other = state.against === null ? null : tokensOf(state.against, chart.variable);
      return `position ${i}: ${promptNow().tokens[i]}\n${chart.name} ${number(tokensOf(state.run, chart.variable)[i])}` +
        (other ? `\n${labelOf(state.against)}: ${number(other[i])}` : "");
    });
  }
};
