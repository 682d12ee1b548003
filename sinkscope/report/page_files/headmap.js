import { arrayOf, finite, largest, page } from "./data.js";
import { panel } from "./download.js";
import { canvas, cut, el, every, fill, linearTicks, number, short, signed, svg, words } from "./draw.js";
import { set, state, watch } from "./state.js";
import { css, diverging, ink, missing, sequential } from "./theme.js";
import { tipsIn } from "./tips.js";

const MARGIN = { left: 44, top: 30, bottom: 42, bar: 74 };

export const heads = () => page.header.heads;
export const measureNow = () => heads().measures[state.measure];
// One number per head of one run: {shape: [layer, head], values}.
export const gridOf = (run, name) => arrayOf(heads().runs[run].grids[name]);
const differenceOf = (name) => {
  const [a, b] = [gridOf(state.run, name), gridOf(state.against, name)];
  return { shape: a.shape, values: a.values.map((v, i) => v - b.values[i]) };
};
export const labelOf = (run) => heads().runs[run].label;

// The maps that are shown: one run, or two and their difference.
const shownMaps = () => {
  const name = measureNow().name;
  const maps = [{ title: labelOf(state.run), grid: gridOf(state.run, name), difference: false }];
  if (state.against === null) return maps;
  return [...maps, { title: labelOf(state.against), grid: gridOf(state.against, name), difference: false },
    { title: "difference", grid: differenceOf(name), difference: true }];
};

// Colour of a number, and the ends of its scale.
const scaleOf = (maps, difference) => {
  const values = maps.flatMap((map) => finite(map.grid.values));
  if (difference) {
    const top = largest(values.map(Math.abs));
    return { low: -top, high: top, colour: (v) => diverging(v / top) };
  }
  const kind = measureNow().scale;
  if (kind === "ratio") return { low: 0, high: 2, colour: (v) => diverging(1 - v) };
  const top = kind === "share" ? 1 : largest(values);
  return { low: 0, high: top, colour: (v) => sequential(v / top) };
};

// Heads of a layer in the order of the columns.
const columnsOf = (grid, layer) => {
  const count = grid.shape[1], order = Array.from({ length: count }, (_, i) => i);
  if (state.order === "number") return order;
  const value = (h) => (Number.isFinite(grid.values[layer * count + h]) ? grid.values[layer * count + h] : -Infinity);
  return order.sort((a, b) => value(b) - value(a));
};

const bar = (scale, x, top, height) => {
  const group = svg("g", { "aria-hidden": "true" });
  const steps = 40, y = (v) => top + height * (1 - (v - scale.low) / (scale.high - scale.low));
  for (let i = 0; i < steps; i++) {
    const v = scale.low + ((i + 0.5) / steps) * (scale.high - scale.low);
    group.append(svg("rect", { x, y: y(v) - height / steps / 2, width: 11, height: height / steps + 0.6, fill: css(scale.colour(v)) }));
  }
  group.append(svg("rect", { x, y: top, width: 11, height, fill: "none", stroke: ink("line") }));
  for (const v of linearTicks(scale.low, scale.high, 4)) group.append(words(x + 16, y(v) + 4, short(v), { fill: ink("soft"), "font-size": 11 }));
  return group;
};

const oneMap = (map, scale, order, box) => {
  const [layers, count] = map.grid.shape;
  const width = box.width - MARGIN.left - MARGIN.bar, cell = width / count, row = box.height / layers;
  const group = svg("g", { transform: `translate(${box.x},${box.y})` });
  const gap = Math.min(1, cell / 8, row / 8);
  if (state.against !== null) group.append(words(MARGIN.left, 18, cut(map.title, Math.floor((width + MARGIN.bar) / 7.6)), { "font-weight": 600, "font-size": 13 }));
  for (let layer = 0; layer < layers; layer++) {
    order[layer].forEach((head, column) => {
      const value = map.grid.values[layer * count + head];
      const fill = Number.isFinite(value) ? scale.colour(value) : missing();
      group.append(svg("rect", {
        x: MARGIN.left + column * cell + gap / 2, y: MARGIN.top + (layers - 1 - layer) * row + gap / 2,
        width: cell - gap, height: row - gap, fill: css(fill), class: "cell",
        "data-tip": "", "data-layer": layer, "data-head": head, "data-column": column, "data-value": value, "data-signed": map.difference ? 1 : 0,
      }));
    });
  }
  group.append(svg("rect", { x: MARGIN.left, y: MARGIN.top, width, height: box.height, fill: "none", stroke: ink("line") }));
  for (const i of every(layers, box.height, 14)) {
    group.append(words(MARGIN.left - 7, MARGIN.top + (layers - 0.5 - i) * row + 4, heads().layers[i], { "text-anchor": "end", fill: ink("soft"), "font-size": 11 }));
  }
  const foot = MARGIN.top + box.height;
  if (state.order === "number") {
    for (const i of every(count, width, 24)) {
      group.append(words(MARGIN.left + (i + 0.5) * cell, foot + 16, heads().heads[i], { "text-anchor": "middle", fill: ink("soft"), "font-size": 11 }));
    }
  }
  const under = state.order === "number" ? "head" : "heads of each layer, largest first";
  group.append(words(MARGIN.left + width / 2, foot + (state.order === "number" ? 34 : 20), under, { "text-anchor": "middle", fill: ink("soft") }));
  group.append(words(12, MARGIN.top + box.height / 2, "layer", { "text-anchor": "middle", fill: ink("soft"), transform: `rotate(-90 12 ${MARGIN.top + box.height / 2})` }));
  group.append(bar(scale, MARGIN.left + width + 10, MARGIN.top, box.height));
  return group;
};

const mark = (chart) => {
  for (const old of chart.querySelectorAll(".chosen")) old.remove();
  for (const cell of chart.querySelectorAll(`rect[data-layer="${state.layer}"][data-head="${state.head}"]`)) {
    const at = Object.fromEntries(["x", "y", "width", "height"].map((key) => [key, cell.getAttribute(key)]));
    cell.parentNode.append(svg("rect", { ...at, fill: "none", stroke: ink("sink"), "stroke-width": 2.5, class: "chosen", "pointer-events": "none" }));
  }
};

const move = (event, order) => {
  const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!steps) return;
  event.preventDefault();
  const layer = Math.min(Math.max(state.layer + steps[0], 0), order.length - 1);
  const column = order[state.layer].indexOf(state.head) + steps[1];
  set({ layer, head: order[layer][Math.min(Math.max(column, 0), order[layer].length - 1)] });
};

const rows = () => {
  const { name } = measureNow(), out = [["layer", "head", ...shownMaps().map((map) => `${name} (${map.title})`)]];
  const maps = shownMaps(), [layers, count] = maps[0].grid.shape;
  for (let l = 0; l < layers; l++) for (let h = 0; h < count; h++) {
    out.push([heads().layers[l], heads().heads[h], ...maps.map((map) => map.grid.values[l * count + h])]);
  }
  return out;
};

export const startHeadMap = () => {
  const shown = panel("map", rows);
  let order = [];
  watch([], () => fill(el("measure"), heads().measures.map((measure) => measure.label)));
  el("measure").addEventListener("change", () => set({ measure: Number(el("measure").value) }));
  el("order").addEventListener("change", () => set({ order: el("order").value }));
  const draw = () => {
    const maps = shownMaps(), [layers] = maps[0].grid.shape;
    const room = Math.max(shown.chart.clientWidth, 260);
    const across = maps.length > 1 && room >= 760 ? maps.length : 1;
    const width = Math.min(room / across, across === 1 && room >= 760 ? room : 620);
    const height = Math.min(640, Math.max(150, layers * (layers > 40 ? 9 : layers > 16 ? 17 : 28)));
    const full = height + MARGIN.top + MARGIN.bottom;
    order = Array.from({ length: layers }, (_, l) => columnsOf(maps[maps.length - 1].grid, l));
    const picture = canvas(room, full * Math.ceil(maps.length / across), `${measureNow().label} of every layer and head`);
    const plain = scaleOf(maps.filter((map) => !map.difference), false);
    maps.forEach((map, i) => {
      const box = { x: (i % across) * (room / across), y: Math.floor(i / across) * full, width, height };
      picture.append(oneMap(map, map.difference ? scaleOf([map], true) : plain, order, box));
    });
    shown.title.textContent = measureNow().label;
    shown.caption.textContent = `${measureNow().says[0].toUpperCase()}${measureNow().says.slice(1)}. Grey: not measured.`;
    shown.show(picture);
    mark(shown.chart);
  };
  watch(["run", "against", "measure", "order", "theme", "width"], draw);
  watch(["layer", "head"], () => mark(shown.chart));
  shown.chart.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-layer]");
    if (cell) set({ layer: Number(cell.dataset.layer), head: Number(cell.dataset.head) });
  });
  shown.chart.addEventListener("keydown", (event) => move(event, order));
  tipsIn(shown.chart, (cell) => {
    const value = Number(cell.dataset.value);
    return `layer ${heads().layers[cell.dataset.layer]}, head ${heads().heads[cell.dataset.head]}\n` +
      `${measureNow().label}: ${cell.dataset.signed === "1" ? signed(value) : number(value)}`;
  });
};
