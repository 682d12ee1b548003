import { finite, largest, mean } from "./data.js";
import { el, html, number, signed } from "./draw.js";
import { heads, labelOf } from "./headmap.js";
import { hasMap, keyValueHead, onDemand, promptNow, queryNow, queryRow, sharesOf, tokensOf } from "./rows.js";
import { set, state, watch } from "./state.js";
import { css, diverging, missing, sequential, textOn } from "./theme.js";
import { hideTip, tipAt } from "./tips.js";

export const tokenSaid = (i, shares, values) => {
  const prompt = promptNow(), query = queryNow();
  const to = query !== null && hasMap(state.run) ? ` from query ${query}` : "";
  return `${prompt.tokens[i]}\nposition ${i}, role ${prompt.roles[i]}\nattention${to} ${number(shares[i])}` +
    (values ? `\nvalue norm ${number(values[i])}` : "");
};

const paint = (strip) => {
  const query = queryNow(), prompt = promptNow(), found = state.find.toLowerCase();
  const top = state.top;
  for (const token of strip.children) {
    const i = Number(token.dataset.i), value = strip.shares[i];
    const rgb = !Number.isFinite(value) ? missing() : strip.difference ? diverging(value / top) : sequential(value / top);
    token.style.backgroundColor = css(rgb);
    token.style.color = textOn(rgb);
    token.classList.toggle("query", query === i && strip.rows);
    token.classList.toggle("sink", prompt.sinks.includes(i));
    token.classList.toggle("hit", found !== "" && prompt.tokens[i].toLowerCase().includes(found));
    token.setAttribute("aria-pressed", String(state.pinned === i));
  }
};

// Strips of tokens: one run, or two and their difference, on one scale.
const strips = () => {
  const shares = sharesOf(state.run);
  const list = [{ title: state.against === null ? "" : labelOf(state.run), shares, run: state.run, difference: false }];
  if (state.against !== null) {
    const other = sharesOf(state.against);
    list.push({ title: labelOf(state.against), shares: other, run: state.against, difference: false });
    list.push({ title: "difference", shares: shares.map((v, i) => v - other[i]), run: state.run, difference: true });
  }
  return list;
};

const roving = (event, box) => {
  const all = [...box.children], at = all.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (at < 0 || to === undefined || !all[to]) return;
  event.preventDefault();
  all[at].tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
};

const strip = (each, prompt) => {
  const box = html("div", { class: "tokens", role: "group", "aria-label": `Tokens${each.title ? ` of ${each.title}` : ""}` });
  prompt.tokens.forEach((text, i) => box.append(html("button", { type: "button", tabindex: i ? -1 : 0, "data-i": i, "data-tip": "" }, text)));
  const said = (token) => tokenSaid(Number(token.dataset.i), box.shares, each.difference ? null : tokensOf(each.run, "value_norm"));
  const point = (event) => {
    const token = event.target.closest("button");
    if (!token) return;
    if (hasMap(state.run)) set({ query: Number(token.dataset.i) });
    const at = token.getBoundingClientRect();
    const [x, y] = event.type === "focusin" ? [at.left, at.bottom - 10] : [event.clientX, event.clientY];
    if (event.type !== "focusin" || token.matches(":focus-visible")) tipAt(x, y, said(token));
  };
  const leave = () => { hideTip(); set({ query: null }); };
  box.addEventListener("pointermove", point);
  box.addEventListener("focusin", point);
  box.addEventListener("pointerleave", leave);
  box.addEventListener("focusout", leave);
  box.addEventListener("keydown", (event) => roving(event, box));
  box.addEventListener("click", (event) => {
    const token = event.target.closest("button");
    if (!token) return;
    const i = Number(token.dataset.i);
    if (hasMap(state.run)) set({ pinned: state.pinned === i ? null : i });
    else if (onDemand.ask) onDemand.ask(i);
  });
  return box;
};

const legend = () => {
  const bar = html("i", {});
  const steps = [0, 0.25, 0.5, 0.75, 1].map((x) => css(sequential(x)));
  bar.style.background = `linear-gradient(to right, ${steps.join(",")})`;
  const query = queryNow();
  const what = query !== null && hasMap(state.run) ? `attention from query ${query} “${promptNow().tokens[query]}”` : "attention received, mean over queries";
  el("legend").replaceChildren(html("span", {}, `${what}: 0`), bar, html("span", {}, number(state.top)));
};

const describe = () => {
  const { layers, heads: names } = heads(), prompt = promptNow();
  el("detail-title").textContent = `Layer ${layers[state.layer]}, head ${names[state.head]}, prompt ${prompt.label}`;
  const shares = tokensOf(state.run, "key_mass"), entropy = tokensOf(state.run, "entropy");
  const best = shares.reduce((a, v, i) => (Number.isFinite(v) && !(v <= shares[a]) ? i : a), 0);
  const parts = [`Most attention goes to “${prompt.tokens[best]}” at position ${best} (${prompt.roles[best]}): ${number(shares[best])} on average.`];
  if (entropy && finite(entropy).length) parts.push(`Mean entropy ${number(mean(entropy))} nat.`);
  if (keyValueHead() !== null) parts.push(`Its values come from key-value head ${keyValueHead()}.`);
  if (state.against !== null) {
    const other = tokensOf(state.against, "key_mass");
    parts.push(`In ${labelOf(state.against)} that token gets ${number(other[best])} (difference ${signed(shares[best] - other[best])}).`);
  }
  el("detail-text").textContent = parts.join(" ");
  const ask = "Click a token to read the rows of this head on this prompt, and to see that token's.";
  el("hint").textContent = !hasMap(state.run) && onDemand.ask ? ask : hasMap(state.run)
    ? "Point at a token, or move to it with the arrow keys, to see the row of that query; click to keep it."
    : `Rows of single queries were not recorded for this head. To see them, add AttentionMap(layers=[${layers[state.layer]}], heads=[${names[state.head]}]) to the probes.`;
};

const table = () => {
  const prompt = promptNow(), list = strips(), values = tokensOf(state.run, "value_norm");
  const columns = ["position", "token", "role", ...list.map((s) => `attention${s.title ? `, ${s.title}` : ""}`), ...(values ? ["value norm"] : [])];
  const right = (c) => (c === 0 || c > 2 ? { class: "n" } : {});
  const head = html("tr", {}, ...columns.map((name, c) => html("th", { scope: "col", ...right(c) }, name)));
  const body = prompt.tokens.map((token, i) => {
    const cells = [i, token, prompt.roles[i], ...list.map((s) => (s.difference ? signed(s.shares[i]) : number(s.shares[i]))), ...(values ? [number(values[i])] : [])];
    return html("tr", {}, ...cells.map((text, c) => html("td", right(c), String(text))));
  });
  el("numbers").replaceChildren(html("table", {}, html("thead", {}, head), html("tbody", {}, ...body)));
};

const KEYS = ["run", "against", "layer", "head", "prompt"];

export const startTokens = () => {
  let boxes = [];
  const colour = () => {
    const list = strips();
    state.top = largest(list.flatMap((each) => Array.from(each.shares).filter(Number.isFinite).map(Math.abs)));
    boxes.forEach((box, s) => {
      Object.assign(box, { shares: list[s].shares, difference: list[s].difference, rows: queryRow(list[s].run, queryNow() ?? 0) !== null });
      paint(box);
    });
    legend();
  };
  watch(KEYS, () => {
    const list = strips(), prompt = promptNow();
    boxes = list.map((each) => strip(each, prompt));
    el("strips").replaceChildren(...list.flatMap((each, s) => (each.title ? [html("p", { class: "of" }, each.title), boxes[s]] : [boxes[s]])));
    describe();
    table();
    colour();
  });
  watch(["query", "pinned", "rows", "theme", "find"], colour);
  watch(["rows"], describe);
};
