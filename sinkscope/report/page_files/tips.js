import { el } from "./draw.js";

export const hideTip = () => { el("tip").hidden = true; };
export const tipAt = (x, y, text) => {
  const tip = el("tip");
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, window.innerWidth - box.width - 8))}px`;
  tip.style.top = `${y + 18 + box.height > window.innerHeight ? Math.max(4, y - box.height - 10) : y + 16}px`;
};
// Tell of what lies under the pointer: `said` gets the element with `data-tip`, and gives its words.
export const tipsIn = (box, said) => {
  box.addEventListener("pointermove", (event) => {
    const target = event.target.closest("[data-tip]");
    if (target && box.contains(target)) tipAt(event.clientX, event.clientY, said(target));
    else hideTip();
  });
  box.addEventListener("pointerleave", hideTip);
};
