import { arrayOf, page, unpackedPage } from "./data.js";
import { el, fill } from "./draw.js";
import { showPage } from "./main.js";
import { hasMap, keepRows, onDemand } from "./rows.js";
import { set, state } from "./state.js";
import { startTried, takeTrial, trial } from "./tried.js";

const facts = page.header.live, secret = new URLSearchParams(location.search).get("secret");
const pages = { reading: { ...page }, tried: null };

const post = async (path, question) => {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json", "X-Sinkscope-Secret": secret }, body: JSON.stringify(question),
  });
  if (!answer.ok) throw new Error((await answer.json()).error);
  return unpackedPage(await answer.text());
};

const tell = (text, wrong = false) => {
  el("live-status").textContent = text;
  el("live-status").classList.toggle("wrong", wrong);
};
const why = (error) => (error instanceof TypeError ? "sinkscope serve does not answer: it was stopped, or is not reached." : error.message);

const showSource = (name) => {
  showPage(pages[name]);
  el("source").value = name;
};

const asked = () => ({
  text: el("live-text").value, gamma: Number(el("live-gamma").value), key: Number(el("live-key").value),
  first: Number(el("live-first").value), last: Number(el("live-last").value),
});

// One question at a time: while one is out, only the newest of those that come waits.
let out = false, waiting = false;
const runText = async () => {
  if (out) { waiting = true; return; }
  out = true;
  el("live-run").disabled = true;
  tell("Running …");
  const began = performance.now();
  try {
    const question = asked();
    if (trial.header && question.text !== trial.header.tried.text) question.key = 0;
    pages.tried = await post("/run", question);
    Object.assign(page, pages.tried);
    takeTrial(pages.tried.header);
    el("sources").hidden = false;
    showSource("tried");
    tell(`Measured in ${((performance.now() - began) / 1000).toFixed(1)} s.`);
  } catch (error) {
    tell(why(error), true);
  }
  out = false;
  el("live-run").disabled = false;
  if (waiting) { waiting = false; runText(); }
};

// Rows of the chosen head on the chosen prompt, of each run that is shown; then the query that was clicked is kept.
const askRows = async (query) => {
  const chosen = { layer: state.layer, head: state.head }, at = { ...chosen, prompt: state.prompt };
  const here = page.header, from = here.tried ? { ...here.tried, received: undefined, loss: undefined, next: undefined, sinks: undefined } : { prompt: state.prompt };
  const runs = [state.run, ...(state.against === null ? [] : [state.against])];
  el("hint").textContent = "Reading the rows of this head …";
  try {
    for (const run of runs) {
      const found = await post("/rows", { ...from, ...chosen, run });
      const kept = { header: page.header, content: page.content };
      Object.assign(page, found);
      const rows = arrayOf(found.header.rows);
      Object.assign(page, kept);
      if (page.header === here && Object.entries(at).every(([name, value]) => state[name] === value)) keepRows(run, rows);
    }
    if (hasMap(state.run)) set({ rows: state.rows + 1, pinned: query });
  } catch (error) {
    el("hint").textContent = why(error);
  }
};

const startLive = () => {
  const layers = el("live-first"), gamma = el("live-gamma");
  fill(layers, facts.layers);
  fill(el("live-last"), facts.layers);
  el("live-last").value = String(facts.layers.length - 1);
  const again = () => { if (trial.header) runText(); };
  startTried((i) => { el("live-key").value = String(i); again(); });
  el("live-form").addEventListener("submit", (event) => { event.preventDefault(); runText(); });
  el("live-text").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); runText(); } });
  gamma.addEventListener("input", () => { el("live-gamma-said").textContent = gamma.value; again(); });
  for (const id of ["live-key", "live-first", "live-last"]) el(id).addEventListener("change", again);
  el("source").addEventListener("change", () => showSource(el("source").value));
  if (facts.rows) onDemand.ask = askRows;
  document.body.dataset.live = "true";
  set({ rows: state.rows + 1 });
};

startLive();
