"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const el = (id) => document.getElementById(id);
  const unpack = (packed) => {
    const text = atob(packed.data);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return { shape: packed.shape, values: new Float32Array(bytes.buffer) };
  };
  // Row [a, b, c] of a packed array: the last axis.
  const row = (array, index, length) => {
    let at = 0;
    index.forEach((i, axis) => { at = at * array.shape[axis] + i; });
    const width = array.shape[array.shape.length - 1];
    return Array.from(array.values.subarray(at * width, at * width + Math.min(width, length)));
  };
  const mass = unpack(data.key_mass);
  const entropy = data.entropy ? unpack(data.entropy) : null;
  const norms = data.value_norm ? unpack(data.value_norm) : null;
  const maps = Object.fromEntries(Object.entries(data.maps).map(([name, packed]) => [name, unpack(packed)]));
  const state = { map: Object.keys(maps)[0], layer: 0, head: 0, prompt: 0 };
  const number = (x) => (Number.isFinite(x) ? (Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(3)) : "not measured");
  // Plotly reads a few HTML tags in its texts, so tokens are escaped there too.
  const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const stops = data.stops.map((c) => [1, 3, 5].map((i) => parseInt(c.slice(i, i + 2), 16)));
  const colour = (x) => {
    const at = Math.min(Math.max(x, 0), 1) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((c, i) => Math.round(c + (stops[low + 1][i] - c) * (at - low)));
  };
  const scale = data.stops.map((c, i) => [i / (data.stops.length - 1), c]);
  const options = (id, labels, key) => {
    labels.forEach((label, i) => {
      const option = document.createElement("option");
      option.value = String(i);
      option.textContent = label;
      el(id).append(option);
    });
    el(id).addEventListener("change", () => { state[key] = Number(el(id).value); show(); });
  };
  const base = { margin: { l: 52, r: 10, t: 30, b: 44 }, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 12, color: "#1d2530" } };
  const config = { displayModeBar: false, responsive: true };

  const grid = () => {
    const array = maps[state.map];
    const [layers, heads] = array.shape;
    const z = Array.from({ length: layers }, (_, l) => row(array, [l], heads).map((v) => (Number.isFinite(v) ? v : null)));
    const share = state.map.startsWith("attention");
    const finite = z.flat().filter((v) => v !== null);
    const cell = [{ type: "rect", x0: state.head - 0.5, x1: state.head + 0.5, y0: state.layer - 0.5, y1: state.layer + 0.5,
      line: { color: "#b84c00", width: 3 } }];
    const every = (labels) => {
      const step = Math.ceil(labels.length / 24);
      const at = labels.map((_, i) => i).filter((i) => i % step === 0);
      return { tickvals: at, ticktext: at.map((i) => labels[i]) };
    };
    Plotly.react("grid", [{ type: "heatmap", z, colorscale: scale, zmin: 0, zmax: share ? 1 : Math.max(...finite, 1e-9),
      xgap: 1, ygap: 1, customdata: z.map((r, l) => r.map((_, h) => [data.layers[l], data.heads[h]])),
      hovertemplate: "layer %{customdata[0]}, head %{customdata[1]}: %{z:.3f}<extra></extra>",
      colorbar: { thickness: 14, outlinewidth: 0 } }],
      { ...base, height: Math.min(760, Math.max(240, 110 + layers * 24)), shapes: cell,
        xaxis: { title: { text: "head" }, ...every(data.heads), zeroline: false, showgrid: false, fixedrange: true },
        yaxis: { title: { text: "layer" }, ...every(data.layers), zeroline: false, showgrid: false, fixedrange: true } }, config);
  };

  const tip = el("tip");
  const pointAt = (event, text) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.min(event.clientX + 14, window.innerWidth - box.width - 8) + "px";
    tip.style.top = Math.min(event.clientY + 16, window.innerHeight - box.height - 8) + "px";
  };
  const strip = (prompt, shares, values) => {
    const top = Math.max(...shares.filter(Number.isFinite), 1e-9);
    el("scale").style.background = `linear-gradient(to right, ${data.stops.join(",")})`;
    el("scale-top").textContent = number(top);
    const box = el("tokens");
    box.replaceChildren(...prompt.tokens.map((token, i) => {
      const span = document.createElement("span");
      const [r, g, b] = Number.isFinite(shares[i]) ? colour(shares[i] / top) : [217, 217, 217];
      span.style.backgroundColor = `rgb(${r},${g},${b})`;
      span.style.color = r * 0.3 + g * 0.59 + b * 0.11 < 140 ? "#fff" : "#1d2530";
      span.textContent = token;
      const said = `${token}\nposition ${i}, role ${prompt.roles[i]}\nattention ${number(shares[i])}` +
        (values ? `\nvalue norm ${number(values[i])}` : "");
      span.dataset.said = said;
      span.addEventListener("mousemove", (event) => { span.classList.add("on"); pointAt(event, said); });
      span.addEventListener("mouseleave", () => { span.classList.remove("on"); tip.hidden = true; });
      return span;
    }));
  };

  // Attention laid on the prompt's pictures: nothing where it is lowest, so that the picture stays to be seen.
  const svg = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
    return made;
  };
  const overlay = (prompt, shares) => {
    const found = data.views ? data.views[state.prompt] : [];
    el("views").hidden = !found.length;
    const seen = found.flatMap((view) => view.keys.map((key) => shares[key])).filter(Number.isFinite);
    const top = Math.max(...seen, 1e-9);
    el("views").replaceChildren(...found.flatMap((view) => {
      const [width, height] = view.size;
      const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
      picture.setAttribute("aria-label", `Attention of this head on ${view.label}`);
      if (view.source) picture.append(svg("image", { href: view.source, width, height, preserveAspectRatio: "none",
        class: Math.max(width, height) > 256 ? "large" : "" }));
      view.keys.forEach((key, i) => {
        const [left, upper, right, lower] = view.boxes[i];
        const share = Number.isFinite(shares[key]) ? Math.max(shares[key], 0) / top : 0;
        const cell = svg("rect", { x: left, y: upper, width: right - left, height: lower - upper, fill: "#ae017e",
          "fill-opacity": (0.85 * share).toFixed(3) });
        const said = `${prompt.tokens[key]}\nposition ${key}, role ${prompt.roles[key]}\nattention ${number(shares[key])}`;
        cell.dataset.said = said;
        cell.addEventListener("mousemove", (event) => { cell.classList.add("on"); pointAt(event, said); });
        cell.addEventListener("mouseleave", () => { cell.classList.remove("on"); tip.hidden = true; });
        picture.append(cell);
      });
      const captioned = (node, text) => {
        const caption = document.createElement("figcaption");
        caption.textContent = text;
        const figure = document.createElement("figure");
        figure.append(node, caption);
        return figure;
      };
      const laid = captioned(picture, `attention of this head on ${view.label}; darkest patch ${number(top)}`);
      if (!view.source) return [laid];
      const plain = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
      plain.setAttribute("aria-label", `${view.label} as it is`);
      plain.append(picture.firstChild.cloneNode());
      return [laid, captioned(plain, `${view.label} as it is`)];
    }));
  };

  const table = (prompt, shares, values) => {
    el("value-column").hidden = !values;
    el("rows").replaceChildren(...prompt.tokens.map((token, i) => {
      const line = document.createElement("tr");
      const cells = [String(i), token, prompt.roles[i], number(shares[i])].concat(values ? [number(values[i])] : []);
      cells.forEach((text, c) => {
        const cell = document.createElement("td");
        if (c === 0 || c > 2) cell.className = "n";
        cell.textContent = text;
        line.append(cell);
      });
      return line;
    }));
  };

  const bars = (id, title, values, prompt, name, color, line) => {
    const text = prompt.tokens.map(escape);
    const trace = { x: values.map((_, i) => i), y: values.map((v) => (Number.isFinite(v) ? v : null)), text,
      marker: { color }, line: { color, width: 2 }, type: line ? "scatter" : "bar", mode: line ? "lines" : undefined,
      hovertemplate: `position %{x}: %{text}<br>${name} %{y:.4f}<extra></extra>`, textposition: line ? undefined : "none" };
    Plotly.react(id, [trace], { ...base, height: 230, title: { text: title, font: { size: 13 }, x: 0.02, xanchor: "left" },
      bargap: 0.1, xaxis: { title: { text: "position" }, fixedrange: true, zeroline: false },
      yaxis: { rangemode: "tozero", fixedrange: true, gridcolor: "#e6e9ed", zerolinecolor: "#b6bec7" } }, config);
  };

  const show = () => {
    grid();
    const { layer, head } = state;
    const prompt = data.prompts[state.prompt];
    const length = prompt.tokens.length;
    const shares = row(mass, [state.prompt, layer, head], length);
    const kv = data.kv_of_head ? data.kv_of_head[head] : head;
    const values = norms ? row(norms, [state.prompt, layer, kv], length) : null;
    const rows = entropy ? row(entropy, [state.prompt, layer, head], length) : null;
    const best = shares.reduce((a, v, i) => (Number.isFinite(v) && !(v <= shares[a]) ? i : a), 0);
    el("detail-title").textContent = `Layer ${data.layers[layer]}, head ${data.heads[head]}, prompt ${prompt.label}`;
    const parts = [`Most attention goes to “${prompt.tokens[best]}” at position ${best} (${prompt.roles[best]}): ${number(shares[best])} on average.`];
    const measured = rows ? rows.filter(Number.isFinite) : [];
    if (measured.length) parts.push(`Mean entropy ${number(measured.reduce((a, b) => a + b, 0) / measured.length)} nat.`);
    if (data.kv_of_head) parts.push(`Its values come from key-value head ${kv}.`);
    el("detail-text").textContent = parts.join(" ");
    overlay(prompt, shares);
    strip(prompt, shares, values);
    table(prompt, shares, values);
    bars("c-mass", "Attention on each token", shares, prompt, "attention", "#0868ac", false);
    if (values) bars("c-value", "Length of the value vectors", values, prompt, "norm", "#009e73", false);
    if (rows) bars("c-entropy", "Entropy of each query's row [nat]", rows, prompt, "entropy", "#8c6d1f", true);
    el("c-value").hidden = !values;
    el("c-entropy").hidden = !rows;
    for (const key of ["layer", "head", "prompt"]) el(key).value = String(state[key]);
  };

  const names = Object.keys(maps);
  names.forEach((name, i) => { const o = document.createElement("option"); o.value = String(i); o.textContent = name; el("map").append(o); });
  el("map").addEventListener("change", () => { state.map = names[Number(el("map").value)]; grid(); });
  options("layer", data.layers, "layer");
  options("head", data.heads, "head");
  const words = (p) => p.words || p.tokens.slice(0, 8).join("").slice(0, 48);
  options("prompt", data.prompts.map((p) => `${p.label}: ${words(p)}`), "prompt");
  // Start on the head with the strongest sink.
  const first = maps[names[0]];
  const flat = Array.from(first.values, (v) => (Number.isFinite(v) ? v : -1));
  const start = flat.indexOf(Math.max(...flat));
  state.layer = Math.floor(start / first.shape[1]);
  state.head = start % first.shape[1];
  show();
  el("grid").on("plotly_click", (event) => {
    const point = event.points[0];
    state.layer = Math.round(point.y);
    state.head = Math.round(point.x);
    show();
  });
  document.body.dataset.ready = "true";
})();
