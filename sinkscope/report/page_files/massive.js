import { arrayOf, finite, page, rowOf } from "./data.js";
import { panel } from "./download.js";
import { canvas, el, every, fill, html, logTicks, number, svg, words } from "./draw.js";
import { axes } from "./charts.js";
import { set, state, watch } from "./state.js";
import { ink, SERIES } from "./theme.js";
import { tipAt, hideTip } from "./tips.js";

const TALL = 320, EDGE = { left: 58, right: 16, top: 26, bottom: 66 };
const massive = () => page.header.massive;
const runNow = () => massive().runs[Math.min(state.massiveRun || 0, massive().runs.length - 1)];
const tokenOf = (prompt, position) => {
  const known = page.header.heads && page.header.heads.prompts[prompt];
  return known && position < known.tokens.length ? known.tokens[position] : `token ${position}`;
};

// Entries of one prompt and site, largest first: {value, dim, position}.
const entries = (prompt, site) => {
  const run = runNow(), [values, dims, positions] = ["value", "dim", "position"].map((key) => rowOf(arrayOf(run[key]), [prompt, site]));
  return Array.from(values, (value, i) => ({ value, dim: dims[i], position: positions[i] })).filter((e) => Number.isFinite(e.value));
};

// Lines of the named dimensions by site, and the median entry: over all prompts, or of the chosen one.
const lines = () => {
  const run = runNow(), prompt = state.massivePrompt, sites = massive().sites.length;
  if (prompt === null) {
    return { median: rowOf(arrayOf(run.median_line), []), dims: run.dims.map((dim, d) => ({ dim, values: rowOf(arrayOf(run.lines), [d]) })) };
  }
  const of = (dim, site) => Math.max(...entries(prompt, site).filter((e) => e.dim === dim).map((e) => Math.abs(e.value)), -1);
  const values = (dim) => Array.from({ length: sites }, (_, s) => of(dim, s)).map((v) => (v > 0 ? v : NaN));
  return { median: rowOf(arrayOf(run.median), [prompt]), dims: run.dims.map((dim) => ({ dim, values: values(dim) })) };
};

const path = (values, x, y) => {
  let pen = "M", d = "";
  values.forEach((v, i) => { if (v > 0) { d += `${pen}${x(i).toFixed(1)} ${y(v).toFixed(1)}`; pen = "L"; } else pen = "M"; });
  return d;
};

const plot = (width) => {
  const found = lines(), sites = massive().sites, all = finite([...found.median, ...found.dims.flatMap((l) => Array.from(l.values))]).filter((v) => v > 0);
  const low = 10 ** Math.floor(Math.log10(Math.min(...all))), high = 10 ** Math.ceil(Math.log10(Math.max(...all)) + 0.02);
  const box = { left: EDGE.left, right: width - EDGE.right, bottom: TALL - EDGE.bottom };
  box.y = (v) => EDGE.top + (box.bottom - EDGE.top) * (1 - Math.log(v / low) / Math.log(high / low));
  const x = (i) => box.left + ((i + 0.5) * (box.right - box.left)) / sites.length;
  const picture = canvas(width, TALL, "Magnitude of the named residual dimensions at every site, log scale");
  axes(picture, box, { y: logTicks(low, high), x: every(sites.length, box.right - box.left, 22).map((i) => [x(i), sites[i], true]) }, { x: "site of the residual stream", at: TALL - 6 });
  picture.append(words(4, 14, "magnitude, log scale", { fill: ink("soft") }));
  picture.append(svg("path", { d: path(found.median, x, box.y), fill: "none", stroke: ink("soft"), "stroke-width": 1.6, "stroke-dasharray": "5 4" }));
  found.dims.forEach((line, d) => {
    const faint = state.dim !== null && state.dim !== line.dim;
    const look = { stroke: SERIES[d % SERIES.length], "stroke-opacity": faint ? 0.2 : 1 };
    picture.append(svg("path", { d: path(line.values, x, box.y), fill: "none", "stroke-width": 2.4, "stroke-linejoin": "round", ...look, "data-dim": line.dim }));
    line.values.forEach((v, i) => { if (v > 0) picture.append(svg("circle", { cx: x(i), cy: box.y(v), r: 2.2, fill: look.stroke, "fill-opacity": look["stroke-opacity"] })); });
  });
  if (state.site !== null) picture.append(svg("path", { d: `M${x(state.site)} ${EDGE.top}V${box.bottom}`, stroke: ink("sink"), "stroke-width": 1.5 }));
  sites.forEach((_, i) => picture.append(svg("rect", {
    x: x(i) - (box.right - box.left) / sites.length / 2, y: EDGE.top, width: (box.right - box.left) / sites.length, height: box.bottom - EDGE.top,
    fill: "transparent", "data-site": i,
  })));
  return { picture, found };
};

const key = (found) => {
  const buttons = found.dims.map((line, d) => {
    const swatch = html("i", {});
    swatch.style.backgroundColor = SERIES[d % SERIES.length];
    const button = html("button", { type: "button", class: "chip", "aria-pressed": String(state.dim === line.dim) }, swatch, `dimension ${line.dim}`);
    button.addEventListener("click", () => { set({ dim: state.dim === line.dim ? null : line.dim }); el("massive-key").children[d].focus(); });
    return button;
  });
  const dashed = html("span", { class: "chip plain" }, html("i", { class: "dashed" }), "median entry");
  el("massive-key").replaceChildren(...buttons, dashed);
};

const siteTable = () => {
  const site = state.site ?? 0, chosen = state.massivePrompt ?? 0, run = runNow();
  const median = rowOf(arrayOf(run.median), [chosen])[site];
  const label = massive().prompts[chosen];
  const rows = entries(chosen, site).filter((e) => state.dim === null || e.dim === state.dim);
  const head = ["dimension", "token", "position", "value", "times the median"].map((text, c) => html("th", { scope: "col", ...(c === 1 ? {} : { class: "n" }) }, text));
  const body = rows.map((e) => html("tr", {}, ...[
    String(e.dim), tokenOf(chosen, e.position), String(e.position), number(e.value), number(Math.abs(e.value) / median),
  ].map((text, c) => html("td", c === 1 ? {} : { class: "n" }, text))));
  el("massive-table").replaceChildren(html("table", {},
    html("caption", {}, `Largest entries at ${massive().sites[site]}, prompt ${label}${state.dim === null ? "" : `, dimension ${state.dim}`}`),
    html("thead", {}, html("tr", {}, ...head)), html("tbody", {}, ...body)));
};

const massiveRows = () => {
  const found = lines();
  return [["site", "median", ...found.dims.map((l) => `dimension ${l.dim}`)],
    ...massive().sites.map((site, i) => [site, found.median[i], ...found.dims.map((l) => l.values[i])])];
};

const peak = () => {
  const found = lines();
  let best = 0, top = -1;
  for (const line of found.dims) line.values.forEach((v, i) => { if (v > top) { top = v; best = i; } });
  return best;
};

const fillChoices = () => {
  fill(el("massive-run"), massive().runs.map((run) => run.label));
  el("massive-run").closest("label").hidden = massive().runs.length < 2;
  el("massive-prompt").replaceChildren(html("option", { value: "" }, `median over ${massive().all_prompts} prompts`));
  fill(el("massive-prompt"), massive().prompts.map((label) => `prompt ${label}`));
  fill(el("massive-site"), massive().sites);
  state.site ??= peak();
};

const choices = () => {
  el("massive-run").addEventListener("change", () => set({ massiveRun: Number(el("massive-run").value), dim: null }));
  el("massive-prompt").addEventListener("change", () => set({ massivePrompt: el("massive-prompt").value === "" ? null : Number(el("massive-prompt").value) }));
  el("massive-site").addEventListener("change", () => set({ site: Number(el("massive-site").value) }));
};

export const startMassive = () => {
  const shown = panel("massive-chart", massiveRows);
  choices();
  watch([], fillChoices);
  watch(["massiveRun", "massivePrompt", "dim", "site", "theme", "width"], () => {
    const { picture, found } = plot(Math.max(280, shown.chart.clientWidth));
    shown.show(picture);
    key(found);
    siteTable();
    el("massive-site").value = String(state.site);
    shown.caption.textContent = `Largest magnitude of each named dimension at each site; a gap: not among the ${massive().ranks} largest entries. Named: ${runNow().rule}. Choose a site to see its entries.`;
  });
  const at = (event) => event.target.closest("[data-site]");
  shown.chart.addEventListener("click", (event) => { if (at(event)) set({ site: Number(at(event).dataset.site) }); });
  shown.chart.addEventListener("pointerleave", hideTip);
  shown.chart.addEventListener("pointermove", (event) => {
    if (!at(event)) { hideTip(); return; }
    const i = Number(at(event).dataset.site), found = lines();
    const told = found.dims.filter((l) => l.values[i] > 0).map((l) => `dimension ${l.dim}: ${number(l.values[i])}`);
    tipAt(event.clientX, event.clientY, [massive().sites[i], ...told, `median entry: ${number(found.median[i])}`].join("\n"));
  });
};
