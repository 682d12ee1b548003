// What is shown now. Every panel watches the keys that it depends on, and is drawn again when one of them changes.
export const state = {
  run: 0, against: null, measure: 0, order: "number", sort: "sink_share", descending: true,
  layer: 0, head: 0, prompt: 0, query: null, pinned: null, find: "",
  dim: null, site: null, massivePrompt: null, theme: "light", width: 0, rows: 0,
};
const watchers = [];

export const watch = (keys, draw) => { watchers.push({ keys: new Set(keys), draw }); };

export const set = (changes) => {
  const changed = Object.keys(changes).filter((key) => state[key] !== changes[key]);
  Object.assign(state, changes);
  for (const { keys, draw } of watchers) if (changed.some((key) => keys.has(key))) draw();
};

export const drawAll = () => { for (const { draw } of watchers) draw(); };
