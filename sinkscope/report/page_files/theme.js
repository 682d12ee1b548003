import { page } from "./data.js";
import { set, state } from "./state.js";

// On a dark page large numbers are light: the ramp starts at the page's own colour.
const DARK = ["#1b222b", "#123a57", "#0f5f93", "#3f9fc6", "#9bd3c0", "#eef7df"];
const COLD = [[33, 102, 172], [103, 169, 207]], WARM = [[178, 60, 20], [239, 138, 98]];
export const SERIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8c6d1f"];

const parsed = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const blend = (a, b, x) => a.map((c, i) => Math.round(c + (b[i] - c) * x));
export const css = (rgb) => `rgb(${rgb.join(",")})`;
export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const stops = () => (state.theme === "dark" ? DARK : page.header.colours.sequential).map(parsed);

export const sequential = (x) => {
  const list = stops();
  const at = Math.min(Math.max(x, 0), 1) * (list.length - 1);
  const low = Math.min(Math.floor(at), list.length - 2);
  return blend(list[low], list[low + 1], at - low);
};
// Colour of a signed number: the page's own at 0, blue below, orange above.
export const diverging = (x) => {
  const size = Math.min(Math.abs(x), 1), [far, near] = x < 0 ? COLD : WARM;
  const zero = stops()[0];
  return size < 0.5 ? blend(zero, near, size * 2) : blend(near, far, size * 2 - 1);
};
const MISSING = { light: [217, 217, 217], dark: [70, 78, 88] };
export const missing = () => MISSING[state.theme];

const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map((c) => { const s = c / 255; return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
// Black or white, whichever is read better on a colour.
export const textOn = (rgb) => (light(rgb) > 0.179 ? "#000000" : "#ffffff");
export const role = (name) => page.header.colours.roles[name] || "#7f7f7f";

const preferred = () => {
  let kept = null;
  try { kept = localStorage.getItem("sinkscope-theme"); } catch { kept = null; }
  return kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
};
export const useTheme = (theme) => {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = theme === "dark" ? "Light" : "Dark";
  set({ theme });
};
export const otherTheme = () => {
  const theme = state.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("sinkscope-theme", theme); } catch { /* a page from disk may have no storage */ }
  useTheme(theme);
};
export const startTheme = () => {
  useTheme(preferred());
  document.getElementById("theme").addEventListener("click", otherTheme);
};
