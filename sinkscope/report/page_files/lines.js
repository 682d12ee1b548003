import { panel } from "./download.js";
import { canvas, cut, el, svg, words } from "./draw.js";
import { hasMap, mapLength, promptNow, queryNow, queryRow } from "./rows.js";
import { set, state, watch } from "./state.js";
import { ink, SERIES } from "./theme.js";

const ROW = 17, LEAST = 0.01;

// Queries left, keys right, a line for each weight, as bertviz draws a head (Vig 2019).
const draw = (width) => {
  const prompt = promptNow(), count = mapLength(state.run), query = queryNow();
  const side = Math.min(150, width * 0.33), left = side + 6, right = width - side - 6;
  const picture = canvas(width, count * ROW + 30, "Lines from each query to its keys, darker where the weight is larger");
  picture.append(words(left, 14, "query", { "text-anchor": "end", fill: ink("soft") }), words(right, 14, "key", { fill: ink("soft") }));
  const y = (i) => 30 + (i + 0.5) * ROW - 4;
  const lines = svg("g", { stroke: SERIES[0], fill: "none", "stroke-width": 1.6 });
  for (let q = 0; q < count; q++) {
    if (query !== null && q !== query) continue;
    const row = queryRow(state.run, q);
    for (let k = 0; k < count; k++) {
      if (row[k] >= LEAST) lines.append(svg("path", { d: `M${left} ${y(q)}L${right} ${y(k)}`, "stroke-opacity": Math.sqrt(Math.min(1, row[k])).toFixed(3) }));
    }
  }
  picture.append(lines);
  const shares = query === null ? null : queryRow(state.run, query);
  for (let i = 0; i < count; i++) {
    const text = cut(prompt.tokens[i], Math.floor(side / 7.5));
    const strong = query === i ? { "font-weight": 700 } : {};
    const band = svg("rect", { x: 0, y: y(i) - ROW / 2, width: left, height: ROW, fill: SERIES[0], "fill-opacity": query === i ? 0.16 : 0, "data-query": i });
    picture.append(band, words(left - 4, y(i) + 4, text, { "text-anchor": "end", "pointer-events": "none", ...strong }));
    if (shares && shares[i] >= LEAST) {
      picture.append(svg("rect", { x: right, y: y(i) - ROW / 2, width: side + 6, height: ROW, fill: SERIES[0], "fill-opacity": (0.4 * Math.min(1, shares[i])).toFixed(3) }));
    }
    picture.append(words(right + 4, y(i) + 4, text, { "pointer-events": "none" }));
  }
  return picture;
};

export const mapRows = () => {
  const prompt = promptNow(), out = [["query", "query_token", "key", "key_token", "attention"]];
  for (let q = 0; q < mapLength(state.run); q++) {
    const row = queryRow(state.run, q);
    for (let k = 0; k < mapLength(state.run); k++) if (Number.isFinite(row[k]) && row[k] > 0) out.push([q, prompt.tokens[q], k, prompt.tokens[k], row[k]]);
  }
  return out;
};

export const startLines = () => {
  const shown = panel("lines", mapRows);
  shown.caption.textContent = `Weights of ${LEAST} and more; darkness grows with the square root. Point at a query to see its lines alone, click to keep it.`;
  const redraw = () => {
    el("maps").hidden = !hasMap(state.run);
    if (hasMap(state.run)) shown.show(draw(Math.max(260, shown.chart.clientWidth)));
  };
  watch(["run", "layer", "head", "prompt", "query", "pinned", "rows", "theme", "width"], redraw);
  shown.chart.addEventListener("pointermove", (event) => {
    const band = event.target.closest("[data-query]");
    set({ query: band ? Number(band.dataset.query) : null });
  });
  shown.chart.addEventListener("pointerleave", () => set({ query: null }));
  shown.chart.addEventListener("click", (event) => {
    const band = event.target.closest("[data-query]");
    if (band) set({ pinned: state.pinned === Number(band.dataset.query) ? null : Number(band.dataset.query) });
  });
};
