import { ink } from "./theme.js";

const SVG = "http://www.w3.org/2000/svg";
const filled = (node, attributes, children) => {
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
};
export const el = (id) => document.getElementById(id);
// Children are nodes or strings; strings become text, never markup.
export const html = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
export const svg = (name, attributes = {}, ...children) => filled(document.createElementNS(SVG, name), attributes, children);

// The choices of a list; one without a value ("nothing") stays in front.
export const fill = (list, labels) => {
  for (const old of [...list.options]) if (old.value !== "") old.remove();
  labels.forEach((label, i) => list.append(html("option", { value: i }, label)));
};

// A picture with its own colours and fonts, so that it is the same when saved as a file.
export const canvas = (width, height, label) => svg("svg", {
  xmlns: SVG, viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label,
  "font-family": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "font-size": 12, fill: ink("ink"),
});
export const words = (x, y, text, attributes = {}) => svg("text", { x, y, ...attributes }, String(text));

export const number = (x) => {
  if (!Number.isFinite(x)) return "not measured";
  if (x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6)) return x.toExponential(2);
  return Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(3);
};
export const signed = (x) => (Number.isFinite(x) && x > 0 ? "+" : "") + number(x);
export const short = (x) => (x === 0 ? "0" : Math.abs(x) >= 1e4 ? x.toExponential(0) : String(+x.toPrecision(2)));

export const linearTicks = (low, high, count = 5) => {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) found.push(+(i * step).toPrecision(12));
  return found;
};
export const logTicks = (low, high) => {
  const found = [];
  for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++) found.push(10 ** p);
  return found.length > 1 ? found : [low, high];
};
// Every n-th index, so that labels of `size` pixels fit.
export const every = (count, room, size) => {
  const step = Math.max(1, Math.ceil((count * size) / Math.max(room, 1)));
  return Array.from({ length: Math.ceil(count / step) }, (_, i) => i * step);
};
export const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
