import { el, html, number, signed } from "./draw.js";
import { csv, save } from "./download.js";
import { gridOf, heads } from "./headmap.js";
import { set, state, watch } from "./state.js";

const MOST = 300;

// Every head with its measures: of the run, or of its difference from the other.
const listed = () => {
  const { measures, layers, heads: names } = heads();
  const value = (name, i) => gridOf(state.run, name).values[i] - (state.against === null ? 0 : gridOf(state.against, name).values[i]);
  const all = [];
  for (let l = 0; l < layers.length; l++) for (let h = 0; h < names.length; h++) {
    all.push({ l, h, values: Object.fromEntries(measures.map((m) => [m.name, value(m.name, l * names.length + h)])) });
  }
  // Differences are ranked by their size.
  const size = (v) => (state.against === null ? v : Math.abs(v));
  const key = (row) => (Number.isFinite(row.values[state.sort]) ? size(row.values[state.sort]) : state.descending ? -Infinity : Infinity);
  return all.sort((a, b) => (state.descending ? key(b) - key(a) : key(a) - key(b)) || a.l - b.l || a.h - b.h);
};

const header = () => html("tr", {}, html("th", { scope: "col" }, "head"), ...heads().measures.map((measure) => {
  const here = state.sort === measure.name, way = state.descending ? "descending" : "ascending";
  const arrow = here ? (state.descending ? " ↓" : " ↑") : "";
  const button = html("button", { type: "button", class: "sort", title: measure.label }, measure.short + arrow);
  button.addEventListener("click", () => {
    set({ sort: measure.name, descending: here ? !state.descending : true, measure: heads().measures.indexOf(measure) });
    el("ranking").querySelectorAll("button.sort")[heads().measures.indexOf(measure)].focus();
  });
  return html("th", { scope: "col", class: "n", "aria-sort": here ? way : "none" }, button);
}));

const line = (row) => {
  const name = `layer ${heads().layers[row.l]}, head ${heads().heads[row.h]}`;
  const choose = html("button", { type: "button", class: "link" }, name);
  choose.addEventListener("click", () => set({ layer: row.l, head: row.h }));
  const shown = (v) => (state.against === null ? number(v) : signed(v));
  const cells = heads().measures.map((measure) => html("td", { class: "n" }, shown(row.values[measure.name])));
  return html("tr", { "data-layer": row.l, "data-head": row.h }, html("th", { scope: "row" }, choose), ...cells);
};

const markRow = () => {
  for (const row of el("ranking").querySelectorAll("tbody tr")) {
    const here = Number(row.dataset.layer) === state.layer && Number(row.dataset.head) === state.head;
    row.classList.toggle("chosen", here);
    if (here) row.setAttribute("aria-current", "true"); else row.removeAttribute("aria-current");
  }
};

export const startRanking = () => {
  watch(["run", "against", "sort", "descending"], () => {
    const all = listed();
    const table = html("table", {}, html("thead", {}, header()), html("tbody", {}, ...all.slice(0, MOST).map(line)));
    const said = [state.against === null ? "" : "differences, ranked by their size", all.length > MOST ? `the first ${MOST} of ${all.length} heads` : ""];
    const told = said.filter((text) => text).join("; ");
    if (told) table.prepend(html("caption", {}, told));
    el("ranking").replaceChildren(table);
    markRow();
  });
  watch(["layer", "head"], markRow);
  el("ranking-csv").addEventListener("click", () => save("heads.csv", "text/csv", csv([
    ["layer", "head", ...heads().measures.map((m) => m.name)],
    ...listed().map((row) => [heads().layers[row.l], heads().heads[row.h], ...heads().measures.map((m) => row.values[m.name])]),
  ])));
};
