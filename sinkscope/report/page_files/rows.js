import { arrayOf, rowOf } from "./data.js";
import { heads } from "./headmap.js";
import { state } from "./state.js";

export const promptNow = () => heads().prompts[state.prompt];
const kvHead = (head) => (heads().kv_of_head ? heads().kv_of_head[head] : head);

// Numbers of the chosen head by token: of a variable by head (key_mass, entropy) or by key-value head (value_norm).
export const tokensOf = (run, name) => {
  const reference = heads().runs[run].variables[name];
  if (!reference) return null;
  const head = name === "value_norm" ? kvHead(state.head) : state.head;
  return rowOf(arrayOf(reference), [state.prompt, state.layer, head], promptNow().tokens.length);
};
export const keyValueHead = () => (heads().kv_of_head ? kvHead(state.head) : null);

// Where the map of the chosen head stands among those recorded, or -1.
const place = (run) => {
  const maps = heads().runs[run].maps;
  if (!maps || state.prompt >= maps.values.shape[0]) return -1;
  return maps.heads.findIndex(([l, h]) => l === state.layer && h === state.head);
};
// Rows that a model read when they were asked for, by run of a page, prompt, layer and head.
const read = new WeakMap();
const chosen = () => `${state.prompt}/${state.layer}/${state.head}`;
const readNow = (run) => (read.get(heads().runs[run]) || new Map()).get(chosen());
export const keepRows = (run, array) => {
  if (!read.has(heads().runs[run])) read.set(heads().runs[run], new Map());
  read.get(heads().runs[run]).set(chosen(), array);
};
export const hasMap = (run) => readNow(run) !== undefined || place(run) >= 0;
// Asks a model for the rows of the chosen head: null where the page is a file.
export const onDemand = { ask: null };
// Attention of one query over the keys, or null where the map was not recorded.
export const queryRow = (run, query) => {
  const rows = readNow(run);
  if (rows) return query < rows.shape[0] ? rowOf(rows, [query], promptNow().tokens.length) : null;
  const at = place(run), maps = heads().runs[run].maps;
  if (at < 0 || query >= maps.values.shape[2]) return null;
  return rowOf(arrayOf(maps.values), [state.prompt, at, query], promptNow().tokens.length);
};
export const mapLength = (run) => {
  const rows = readNow(run);
  return Math.min(rows ? rows.shape[0] : heads().runs[run].maps.values.shape[2], promptNow().tokens.length);
};
// What colours the tokens: attention received, or the row of the query that is pointed at or pinned.
export const queryNow = () => (state.query !== null ? state.query : state.pinned);
export const sharesOf = (run) => {
  const query = queryNow();
  return (query !== null && queryRow(run, query)) || tokensOf(run, "key_mass");
};
