import { html } from "./draw.js";
import { ink } from "./theme.js";

export const save = (name, type, text) => {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = html("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
};

const cell = (value) => {
  const text = typeof value === "number" ? (Number.isFinite(value) ? String(+value.toPrecision(6)) : "") : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
};
export const csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";

// The picture as a file: on the colour of the page, so that light text is read where the page was dark.
export const drawn = (node) => {
  const copy = node.cloneNode(true);
  const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [key, value] of [["width", "100%"], ["height", "100%"], ["fill", ink("paper")]]) ground.setAttribute(key, value);
  copy.prepend(ground);
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(copy)}`;
};

const button = (label, title, act) => {
  const made = html("button", { type: "button", class: "small", "aria-label": title, title }, label);
  made.addEventListener("click", act);
  return made;
};

// A panel of the page: a heading with buttons for its picture and its numbers, the picture, and a line of words.
export const panel = (id, rows) => {
  const box = document.getElementById(id);
  const chart = box.querySelector(".chart"), title = box.querySelector(".title");
  const name = () => title.textContent;
  const buttons = box.querySelector(".downloads");
  buttons.append(
    button("SVG", `Download as SVG: ${name()}`, () => save(`${id}.svg`, "image/svg+xml", drawn(chart.querySelector("svg")))),
    button("CSV", `Download as CSV: ${name()}`, () => save(`${id}.csv`, "text/csv", csv(rows()))),
  );
  return { box, chart, title, caption: box.querySelector("figcaption"), show: (picture) => chart.replaceChildren(picture) };
};

// Figures that came with the page: their pictures and numbers are in its data.
export const startFigures = (figures) => {
  for (const box of document.querySelectorAll("figure[data-figure]")) {
    const name = box.dataset.figure, heading = box.querySelector(".title").textContent, { svg: picture, csv: table } = figures[name];
    box.querySelector("img").src = URL.createObjectURL(new Blob([picture], { type: "image/svg+xml" }));
    box.querySelector(".downloads").append(
      button("SVG", `Download as SVG: ${heading}`, () => save(`${name}.svg`, "image/svg+xml", picture)),
      button("CSV", `Download as CSV: ${heading}`, () => save(`${name}.csv`, "text/csv", table)),
    );
  }
};
