import { load, page } from "./data.js";
import { startFigures } from "./download.js";
import { el, fill } from "./draw.js";
import { gridOf, heads, labelOf, startHeadMap } from "./headmap.js";
import { startCharts } from "./charts.js";
import { startCurve } from "./curve.js";
import { startContents, startKeys } from "./keys.js";
import { startLines } from "./lines.js";
import { startMassive } from "./massive.js";
import { startMatrix } from "./matrix.js";
import { startPictures } from "./pictures.js";
import { startRanking } from "./ranking.js";
import { startSearch } from "./search.js";
import { drawAll, set, state, watch } from "./state.js";
import { startTheme } from "./theme.js";
import { startTokens } from "./tokens.js";

// Lists that follow the state, and change it.
const listOf = (id, key, labels) => {
  watch([], () => fill(el(id), labels()));
  el(id).addEventListener("change", () => set({ [key]: el(id).value === "" ? null : Number(el(id).value), query: null, pinned: null }));
  watch([key], () => { el(id).value = state[key] === null ? "" : String(state[key]); });
};

const startRuns = () => {
  const labels = () => heads().runs.map((_, i) => labelOf(i));
  watch([], () => { el("runs").hidden = heads().runs.length < 2; });
  listOf("run", "run", labels);
  listOf("against", "against", labels);
};

// Two runs are compared from the start.
const compared = () => (heads().runs.length > 1
  ? { run: page.header.base === 0 ? 1 : 0, against: page.header.base } : { run: 0, against: null });

// Start on the head with the strongest sink, or on the one that differs most.
const strongest = () => {
  const name = heads().measures[0].name, { shape, values: all } = gridOf(state.run, name);
  const values = state.against === null ? all : all.map((v, i) => Math.abs(v - gridOf(state.against, name).values[i]));
  const best = values.reduce((a, v, i) => (v > (values[a] ?? -1) ? i : a), 0);
  return { layer: Math.floor(best / shape[1]), head: best % shape[1] };
};

const startHeads = () => {
  startRuns();
  Object.assign(state, compared());
  Object.assign(state, strongest(), { sort: heads().measures[0].name });
  listOf("layer", "layer", () => heads().layers);
  listOf("head", "head", () => heads().heads);
  const first = (prompt) => prompt.words || prompt.tokens.slice(0, 8).join("").slice(0, 48);
  listOf("prompt", "prompt", () => heads().prompts.map((prompt) => `${prompt.label}: ${first(prompt)}`));
  watch(["measure"], () => { el("measure").value = String(state.measure); });
  startHeadMap();
  startRanking();
  startTokens();
  startPictures();
  startLines();
  startMatrix();
  startCharts();
  startCurve();
  startSearch();
};

// Another page's numbers in the place of these, of the same layers and heads.
export const showPage = (found) => {
  Object.assign(page, { header: found.header, content: found.content });
  const measure = Math.max(0, heads().measures.findIndex((m) => m.name === state.sort));
  Object.assign(state, compared(), { measure, sort: heads().measures[measure].name, prompt: 0, query: null, pinned: null });
  Object.assign(state, { dim: null, site: null, massiveRun: 0, massivePrompt: null });
  drawAll();
};

const start = async () => {
  await load();
  startTheme();
  if (page.header.heads) startHeads();
  if (page.header.massive) startMassive();
  startFigures(page.header.figures);
  startKeys();
  startContents();
  drawAll();
  let settled = 0;
  addEventListener("resize", () => { clearTimeout(settled); settled = setTimeout(() => set({ width: innerWidth }), 120); });
  document.body.dataset.ready = "true";
};

await start();
