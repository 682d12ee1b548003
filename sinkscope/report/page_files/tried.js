import { axes } from "./charts.js";
import { arrayOf, finite, largest, mean } from "./data.js";
import { panel } from "./download.js";
import { canvas, el, every, fill, html, linearTicks, number, signed, svg, words } from "./draw.js";
import { watch } from "./state.js";
import { css, ink, sequential, SERIES, textOn } from "./theme.js";
import { hideTip, tipAt, tipsIn } from "./tips.js";

// The text that was tried last: its page's header, and its arrays (attention received and loss by token, of each run).
export const trial = { header: null, received: [], loss: [] };
const triedHeads = () => trial.header.heads;
const triedTokens = () => triedHeads().prompts[0].tokens;
// The loss at a query is that of the token behind it.
const lossOf = (run, i) => (i > 0 && trial.loss[run] ? trial.loss[run][i - 1] : NaN);

const layersSaid = () => {
  const { first, last } = trial.header.tried, names = triedHeads().layers;
  if (first === 0 && last === names.length - 1) return "all layers";
  return first === last ? `layer ${names[first]}` : `layers ${names[first]} to ${names[last]}`;
};

const say = () => {
  const { gamma, key } = trial.header.tried, losses = trial.loss.map(mean);
  const parts = [`${triedTokens().length} tokens.`], edited = triedHeads().runs.length > 1;
  if (Number.isFinite(losses[0])) parts.push(`Loss ${number(losses[0])} nat a token.`);
  if (edited) {
    const cost = Number.isFinite(losses[1]) ? ` the loss is ${number(losses[1])} (${signed(losses[1] - losses[0])})` : " it is changed";
    parts.push(`With gamma ${gamma} on “${triedTokens()[key]}” at position ${key} in ${layersSaid()}${cost};`,
      `the token then gets ${number(trial.received[1][key])} of the attention instead of ${number(trial.received[0][key])}, mean over all heads.`);
  }
  el("tried-said").textContent = parts.join(" ");
  el("tried-told").replaceChildren(...trial.header.told.map((told) =>
    html("article", { class: `finding ${told.state}` }, html("h3", {}, told.heading), html("p", {}, told.text))));
};

const tokenTold = (run, i) => {
  const said = `${triedTokens()[i]}\nposition ${i}\nattention received ${number(trial.received[run][i])}`;
  return Number.isFinite(lossOf(run, i)) ? `${said}\nloss ${number(lossOf(run, i))} nat` : said;
};

// One strip of tokens for each run, on one scale; a click chooses the key that is scaled.
const triedStrip = (run, top, choose) => {
  const { sinks, key } = trial.header.tried;
  const box = html("div", { class: "tokens", role: "group", "aria-label": `Tokens of the text, ${triedHeads().runs[run].label}` });
  triedTokens().forEach((text, i) => {
    const token = html("button", { type: "button", "data-i": i, "aria-pressed": String(i === key), class: sinks.includes(i) ? "sink" : "" }, text);
    const rgb = sequential(trial.received[run][i] / top);
    token.style.backgroundColor = css(rgb);
    token.style.color = textOn(rgb);
    token.addEventListener("click", () => choose(i));
    token.addEventListener("pointermove", (event) => tipAt(event.clientX, event.clientY, tokenTold(run, i)));
    token.addEventListener("pointerleave", hideTip);
    box.append(token);
  });
  return [html("p", { class: "of" }, triedHeads().runs[run].label), box];
};

const LOSS_TALL = 230, ROOM = { left: 46, right: 8, top: 12, bottom: 36 };
const lossPlot = (width) => {
  const count = triedTokens().length, top = largest(trial.loss.flatMap(finite)) * 1.04;
  const box = { left: ROOM.left, right: width - ROOM.right, bottom: LOSS_TALL - ROOM.bottom };
  const x = (i) => box.left + ((i + 0.5) * (box.right - box.left)) / count;
  box.y = (v) => ROOM.top + (box.bottom - ROOM.top) * (1 - v / top);
  const picture = canvas(width, LOSS_TALL, "Loss of each token of the text");
  axes(picture, box, { y: linearTicks(0, top, 4), x: every(count, box.right - box.left, 34).map((i) => [x(i), i, false]) }, { x: "position", at: LOSS_TALL - 4 });
  trial.loss.forEach((_, run) => {
    let d = "";
    for (let i = 1; i < count; i++) if (Number.isFinite(lossOf(run, i))) d += `${d ? "L" : "M"}${x(i).toFixed(1)} ${box.y(lossOf(run, i)).toFixed(1)}`;
    picture.append(svg("path", { d, fill: "none", stroke: SERIES[run], "stroke-width": 2, "stroke-linejoin": "round" }));
    picture.append(words(box.right - 32, ROOM.top + 12 + 16 * run, triedHeads().runs[run].label, { "text-anchor": "end", fill: ink("ink"), "font-weight": 600 }));
    picture.append(svg("path", { d: `M${box.right - 26} ${ROOM.top + 8 + 16 * run}h22`, stroke: SERIES[run], "stroke-width": 3 }));
  });
  for (let i = 0; i < count; i++) picture.append(svg("rect", { x: x(i) - (box.right - box.left) / count / 2, y: ROOM.top, width: (box.right - box.left) / count, height: box.bottom - ROOM.top, fill: "transparent", "data-tip": "", "data-i": i }));
  return picture;
};

const lossRows = () => [["position", "token", ...trial.loss.map((_, run) => `loss (${triedHeads().runs[run].label})`)],
  ...triedTokens().map((text, i) => [i, text, ...trial.loss.map((_, run) => lossOf(run, i))])];

const nextTable = () => {
  const { next } = trial.header.tried, labels = triedHeads().runs.map((run) => run.label);
  el("tried-next").hidden = !next.length;
  const head = html("tr", {}, html("th", { scope: "col" }, "next token"), ...labels.map((label) => html("th", { scope: "col", class: "n" }, label)));
  const body = next.map(({ token, shares }) => html("tr", {}, html("th", { scope: "row" }, token), ...shares.map((p) => html("td", { class: "n" }, number(p)))));
  el("tried-next").replaceChildren(html("table", {}, html("caption", {}, "Probability of the next token: the most likely ones of each run"), html("thead", {}, head), html("tbody", {}, ...body)));
};

export const startTried = (choose) => {
  const loss = panel("tried-loss", lossRows);
  loss.caption.textContent = "The cost of guessing each token from those before it; the first has none.";
  tipsIn(loss.chart, (cell) => trial.loss.map((_, run) => `${triedHeads().runs[run].label}: ${tokenTold(run, Number(cell.dataset.i))}`).join("\n\n"));
  const draw = () => {
    if (!trial.header) return;
    el("tried").hidden = false;
    const strips = () => [...el("tried-tokens").querySelectorAll(".tokens")], held = document.activeElement;
    const focused = strips().indexOf(held.parentNode);
    say();
    const top = largest(trial.received.flatMap(finite));
    el("tried-tokens").replaceChildren(...trial.received.flatMap((_, run) => triedStrip(run, top, choose)));
    if (focused >= 0) strips()[Math.min(focused, strips().length - 1)].children[held.dataset.i]?.focus();
    loss.box.hidden = !trial.loss.some((values) => finite(values).length);
    if (!loss.box.hidden) loss.show(lossPlot(Math.max(260, loss.chart.clientWidth)));
    nextTable();
  };
  watch(["theme", "width"], draw);
};

// Take a new trial, whose page is the one that is shown now.
export const takeTrial = (header) => {
  const { received, loss, key } = header.tried;
  Object.assign(trial, { header, received: received.map((r) => arrayOf(r).values), loss: loss.map((r) => arrayOf(r).values) });
  fill(el("live-key"), triedTokens().map((text, i) => `position ${i} “${text}”`));
  el("live-key").value = String(key);
};
