import { el, html, number } from "./draw.js";
import { heads } from "./headmap.js";
import { tokensOf } from "./rows.js";
import { set, state, watch } from "./state.js";

const MOST_HITS = 60;

const around = (tokens, i) => `${tokens.slice(Math.max(0, i - 4), i).join("")}[${tokens[i]}]${tokens.slice(i + 1, i + 4).join("")}`;

const search = () => {
  const text = state.find.toLowerCase(), hits = [];
  if (text) heads().prompts.forEach((prompt, p) => prompt.tokens.forEach((token, i) => { if (token.toLowerCase().includes(text)) hits.push({ p, i }); }));
  return hits;
};

export const startSearch = () => {
  el("find").addEventListener("input", () => set({ find: el("find").value.replaceAll(" ", "␣") }));
  watch(["find"], () => {
    const hits = search();
    el("hits").hidden = state.find === "";
    el("find-count").textContent = state.find === "" ? "" : `${hits.length} token${hits.length === 1 ? "" : "s"}`;
    el("hits").replaceChildren(...hits.slice(0, MOST_HITS).map(({ p, i }) => {
      const prompt = heads().prompts[p];
      const go = html("button", { type: "button", class: "link" }, `prompt ${prompt.label}, position ${i}: ${around(prompt.tokens, i)}`);
      go.addEventListener("click", () => {
        set({ prompt: p, pinned: null });
        const token = document.querySelectorAll("#strips .tokens button")[i];
        token.scrollIntoView({ block: "center" });
        token.focus();
        el("said").textContent = `attention ${number(tokensOf(state.run, "key_mass")[i])}`;
      });
      return html("li", {}, go);
    }), ...(hits.length > MOST_HITS ? [html("li", {}, `and ${hits.length - MOST_HITS} more`)] : []));
  });
};
