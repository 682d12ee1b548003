import { panel } from "./download.js";
import { canvas, cut, every, number, svg, words } from "./draw.js";
import { mapRows } from "./lines.js";
import { hasMap, mapLength, promptNow, queryNow, queryRow } from "./rows.js";
import { state, watch } from "./state.js";
import { css, ink, sequential } from "./theme.js";
import { tipsIn } from "./tips.js";

// The attention map: queries downwards, keys along.
const drawMatrix = (width) => {
  const prompt = promptNow(), count = mapLength(state.run);
  const side = 92, cell = (width - side - 6) / count, size = cell * count;
  const picture = canvas(width, size + side + 6, "Attention map: queries downwards, keys along");
  const label = (i) => cut(prompt.tokens[i], 11);
  for (let q = 0; q < count; q++) {
    const row = queryRow(state.run, q);
    for (let k = 0; k < count; k++) {
      if (!(row[k] >= 0.001)) continue;
      picture.append(svg("rect", {
        x: side + k * cell, y: side + q * cell, width: cell + 0.3, height: cell + 0.3, fill: css(sequential(Math.sqrt(row[k]))),
        "data-tip": "", "data-q": q, "data-k": k, "data-v": row[k],
      }));
    }
  }
  picture.append(svg("rect", { x: side, y: side, width: size, height: size, fill: "none", stroke: ink("line") }));
  for (const i of every(count, size, 13)) {
    const at = side + (i + 0.5) * cell;
    picture.append(words(side - 5, at + 4, label(i), { "text-anchor": "end", "font-size": 11, fill: ink("soft") }));
    picture.append(words(at, side - 5, label(i), { "font-size": 11, fill: ink("soft"), transform: `rotate(-60 ${at} ${side - 5})` }));
  }
  const query = queryNow();
  if (query !== null && query < count) picture.append(svg("rect", { x: side, y: side + query * cell, width: size, height: cell, fill: "none", stroke: ink("sink"), "stroke-width": 1.5, "pointer-events": "none" }));
  return picture;
};

export const startMatrix = () => {
  const shown = panel("matrix", mapRows);
  shown.caption.textContent = "Colour grows with the square root of the weight, so that small weights are seen.";
  watch(["run", "layer", "head", "prompt", "pinned", "rows", "theme", "width"], () => {
    if (hasMap(state.run)) shown.show(drawMatrix(Math.max(260, Math.min(560, shown.chart.clientWidth))));
  });
  tipsIn(shown.chart, (cell) => {
    const { q, k, v } = cell.dataset, tokens = promptNow().tokens;
    return `query ${q} “${tokens[q]}”\nkey ${k} “${tokens[k]}”\nattention ${number(Number(v))}`;
  });
};
