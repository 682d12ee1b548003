import { el } from "./draw.js";
import { heads } from "./headmap.js";
import { page } from "./data.js";
import { set, state } from "./state.js";
import { otherTheme } from "./theme.js";

const step = (key, by, count) => set({ [key]: (state[key] + by + count) % count, ...(key === "prompt" ? { pinned: null, query: null } : {}) });

const ACTS = {
  "?": () => el("help").showModal(),
  t: otherTheme,
  "/": () => { if (el("find")) el("find").focus(); },
  "]": () => page.header.heads && step("prompt", 1, heads().prompts.length),
  "[": () => page.header.heads && step("prompt", -1, heads().prompts.length),
  k: () => page.header.heads && step("layer", 1, heads().layers.length),
  j: () => page.header.heads && step("layer", -1, heads().layers.length),
  l: () => page.header.heads && step("head", 1, heads().heads.length),
  h: () => page.header.heads && step("head", -1, heads().heads.length),
  m: () => page.header.heads && step("measure", 1, heads().measures.length),
  Escape: () => set({ pinned: null, query: null }),
};

export const startKeys = () => {
  el("help-open").addEventListener("click", () => el("help").showModal());
  el("help-close").addEventListener("click", () => el("help").close());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || el("help").open) return;
    if (!el("single-keys").checked || event.target.closest("input, select, textarea")) return;
    const act = ACTS[event.key];
    if (!act) return;
    if (event.key !== "Escape") event.preventDefault();
    act();
  });
};

// The line of the table of contents whose section is on the screen.
export const startContents = () => {
  const links = new Map([...document.querySelectorAll("#contents a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((found) => {
    for (const entry of found) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      const here = links.get(entry.target.id);
      if (here) here.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  for (const id of links.keys()) if (el(id)) seen.observe(el(id));
};
