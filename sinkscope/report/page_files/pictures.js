import { largest } from "./data.js";
import { drawn, save } from "./download.js";
import { el, html, number, svg } from "./draw.js";
import { heads, labelOf } from "./headmap.js";
import { hasMap, promptNow, sharesOf } from "./rows.js";
import { set, state, watch } from "./state.js";
import { tokenSaid } from "./tokens.js";
import { ink } from "./theme.js";
import { tipsIn } from "./tips.js";

const LAID = "#ae017e";

const framed = (view, label) => {
  const [width, height] = view.size;
  const picture = svg("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  if (view.source) picture.append(svg("image", { href: view.source, width, height, preserveAspectRatio: "none", class: Math.max(width, height) > 256 ? "large" : "" }));
  return picture;
};

// Attention laid on a picture: nothing where it is lowest, so that the picture stays to be seen. Sinks are ringed.
const overlay = (view, shares, top) => {
  const picture = framed(view, `Attention of this head on ${view.label}`), rings = svg("g", { fill: "none", "pointer-events": "none" });
  const sinks = new Set(promptNow().sinks);
  let ringed = 0;
  view.keys.forEach((key, i) => {
    const [x, y, right, lower] = view.boxes[i], value = shares[key];
    const share = Number.isFinite(value) ? Math.max(value, 0) / top : 0;
    picture.append(svg("rect", { x, y, width: right - x, height: lower - y, fill: LAID, "fill-opacity": (0.85 * share).toFixed(3), "data-tip": "", "data-key": key, class: "patch" }));
    if (value > heads().threshold || sinks.has(key)) {
      const radius = Math.max(right - x, lower - y) * 0.62, at = { cx: (x + right) / 2, cy: (y + lower) / 2, r: radius };
      rings.append(svg("circle", { ...at, stroke: "#ffffff", "stroke-width": radius * 0.2 }), svg("circle", { ...at, stroke: "#d55e00", "stroke-width": radius * 0.12, class: "ring" }));
      ringed++;
    }
  });
  picture.append(rings);
  return { picture, ringed };
};

const captioned = (picture, text, name) => {
  const button = html("button", { type: "button", class: "small", "aria-label": `Download as SVG: ${name}` }, "SVG");
  button.addEventListener("click", () => save(`${name.replace(/\W+/g, "_")}.svg`, "image/svg+xml", drawn(picture)));
  return html("figure", {}, picture, html("figcaption", {}, text, " ", button));
};

export const startPictures = () => {
  if (!heads().views) return;
  tipsIn(el("views"), (cell) => tokenSaid(Number(cell.dataset.key), sharesOf(state.run), null));
  el("views").addEventListener("click", (event) => {
    const patch = event.target.closest("[data-key]");
    if (patch && hasMap(state.run)) set({ pinned: state.pinned === Number(patch.dataset.key) ? null : Number(patch.dataset.key) });
  });
  watch(["run", "against", "layer", "head", "prompt", "pinned", "query", "rows", "theme"], () => {
    const views = (heads().views || [])[state.prompt] || [], runs = state.against === null ? [state.run] : [state.run, state.against];
    el("views").hidden = !views.length;
    const seen = (view) => runs.flatMap((run) => { const shares = sharesOf(run); return view.keys.map((key) => shares[key]); });
    const top = largest(views.flatMap(seen));
    el("views").replaceChildren(...views.flatMap((view) => {
      const laid = runs.map((run) => {
        const { picture, ringed } = overlay(view, sharesOf(run), top), of = runs.length > 1 ? `, ${labelOf(run)}` : "";
        return captioned(picture, `Attention of this head on ${view.label}${of}; darkest patch ${number(top)}` +
          (ringed ? `; ${ringed} ${ringed === 1 ? "sink" : "sinks"} ringed.` : "; no sink among its patches."), `attention on ${view.label}${of}`);
      });
      return view.source ? [...laid, captioned(framed(view, `${view.label} as it is`), `${view.label} as it is.`, `${view.label} as it is`)] : laid;
    }));
    el("views").style.setProperty("--ring", ink("sink"));
  });
};
