"use strict";
// Draws every block of the JSON in #report. One function a kind; no library, no network.

const SVG = "http://www.w3.org/2000/svg";
const colour = (i) => `var(--c${i % 8})`;
const short = (v) => (v === null || v === undefined ? "–" : Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-3) ? v.toExponential(2) : +v.toFixed(4));

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) key === "class" ? (node.className = value) : node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function ticks(low, high, n = 6) {
  const raw = (high - low) / n, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

function captioned(block) {
  const figure = element("figure", { "data-kind": block.kind });
  figure.append(element("figcaption", {}, block.title));
  if (block.note) figure.append(element("p", { class: "note" }, block.note));
  return figure;
}

function tooltip(figure) {
  const tip = element("div", { class: "tip", role: "status" });
  figure.append(tip);
  return {
    show(event, lines) {
      tip.replaceChildren(...lines.map((line, i) => element("div", {}, i ? line : element("b", {}, line))));
      tip.style.display = "block";
      const box = figure.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      tip.style.left = `${Math.max(0, Math.min(x + 14, box.width - tip.offsetWidth - 4))}px`;
      tip.style.top = `${y + 14}px`;
    },
    hide() { tip.style.display = "none"; },
  };
}

// Calls draw(width) at first and whenever the figure's width changes, so that text keeps its size on a phone.
function atWidth(node, draw) {
  let drawn = 0;
  const again = () => { const width = Math.round(node.clientWidth) || 560; if (width !== drawn) draw((drawn = width)); };
  new ResizeObserver(() => requestAnimationFrame(again)).observe(node);
  return again;
}

// {series: [{name, x, y, low?, high?, dashed?, level?}], x_label, log2?: bool}; low and high draw a band
function lines(block) {
  const figure = captioned(block), left = 46, right = 12, top = 12, bottom = 40;
  const svg = shape("svg", { role: "img", "aria-label": block.title });
  const legend = element("div", { class: "legend" });
  figure.append(svg, legend);
  const tip = tooltip(figure), off = new Set(), along = block.log2 ? Math.log2 : (v) => v;
  const numbers = (s, keys) => keys.flatMap((k) => s[k] ?? []).filter((v) => v !== null);
  let scales, W = 560;

  function draw() {
    const H = Math.max(230, Math.min(330, 0.54 * W));
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.setAttribute("height", H);
    const shown = block.series.filter((_, i) => !off.has(i));
    const xs = shown.flatMap((s) => s.x).map(along), ys = shown.flatMap((s) => numbers(s, ["y", "low", "high", "level"]));
    svg.replaceChildren();
    scales = null;
    if (!xs.length || !ys.length) return;
    let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    const room = (y1 - y0) * 0.06 || Math.abs(y1) * 0.1 || 0.1;
    y0 -= room; y1 += room;
    const X = (v) => left + ((along(v) - x0) / (x1 - x0)) * (W - left - right);
    const Y = (v) => H - bottom - ((v - y0) / (y1 - y0)) * (H - top - bottom);
    scales = { X, shown };
    for (const t of ticks(y0, y1)) {
      svg.append(shape("line", { class: "axis", x1: left, x2: W - right, y1: Y(t), y2: Y(t) }));
      svg.append(shape("text", { x: left - 6, y: Y(t) + 4, "text-anchor": "end" }, short(t)));
    }
    const marks = block.log2 ? [...new Set(xs)].sort((a, b) => a - b).map((v) => 2 ** v) : ticks(x0, x1, Math.max(3, W / 90));
    for (const t of marks) svg.append(shape("text", { x: X(t), y: H - bottom + 16, "text-anchor": "middle" }, Math.round(t * 100) / 100));
    svg.append(shape("text", { x: (W + left) / 2, y: H - 6, "text-anchor": "middle" }, block.x_label));
    block.series.forEach((s, i) => {
      if (off.has(i)) return;
      const ink = colour(s.colour ?? i);
      if (s.low && s.high) {
        const known = [...s.x.keys()].filter((j) => s.low[j] !== null && s.high[j] !== null);
        const edge = [...known.map((j) => [X(s.x[j]), Y(s.high[j])]), ...known.reverse().map((j) => [X(s.x[j]), Y(s.low[j])])];
        svg.append(shape("polygon", { points: edge.join(" "), fill: ink, opacity: 0.14 }));
      }
      if (s.level !== undefined) svg.append(shape("line", { class: "level", stroke: ink, x1: left, x2: W - right, y1: Y(s.level), y2: Y(s.level) }));
      const points = s.x.map((x, j) => (s.y[j] === null ? null : [X(x), Y(s.y[j])])).filter(Boolean);
      const style = { fill: "none", stroke: ink, "stroke-width": 2, "stroke-linejoin": "round", "stroke-dasharray": s.dashed ? "5 4" : "none" };
      svg.append(shape("polyline", { points: points.join(" "), ...style }));
      if (points.length <= 24) for (const [x, y] of points) svg.append(shape("circle", { cx: x, cy: y, r: 2.6, fill: ink }));
    });
    svg.append(shape("line", { class: "axis cursor", y1: top, y2: H - bottom, x1: -9, x2: -9 }));
  }

  svg.addEventListener("pointermove", (event) => {
    if (!scales) return;
    const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * W;
    const xs = [...new Set(scales.shown.flatMap((s) => s.x))];
    const x = xs.reduce((best, v) => (Math.abs(scales.X(v) - at) < Math.abs(scales.X(best) - at) ? v : best), xs[0]);
    const cursor = svg.querySelector(".cursor");
    cursor.setAttribute("x1", scales.X(x)); cursor.setAttribute("x2", scales.X(x));
    const values = scales.shown.filter((s) => s.x.includes(x)).map((s) => {
      const j = s.x.indexOf(x), band = (s.low?.[j] ?? null) !== null && s.high ? ` (${short(s.low[j])} to ${short(s.high[j])})` : "";
      return `${s.name}: ${short(s.y[j])}${band}`;
    });
    tip.show(event, [`${block.x_label} ${short(x)}`, ...values]);
  });
  svg.addEventListener("pointerleave", () => tip.hide());
  legend.append(...switches(block.series.map((s, i) => [s.name, colour(s.colour ?? i)]), off, draw));
  atWidth(figure, (width) => { W = width; draw(); })();
  return figure;
}

// Buttons that switch numbered things on and off
function switches(named, off, draw) {
  return named.map(([name, ink], i) => {
    const button = element("button", { "aria-pressed": "true", type: "button" },
      element("span", { class: "swatch", style: `background:${ink}` }), name);
    button.onclick = () => { off.has(i) ? off.delete(i) : off.add(i); button.setAttribute("aria-pressed", !off.has(i)); draw(); };
    return button;
  });
}

// As many columns as leave the fewest places blank
function filled(panels) {
  const n = panels.children.length, blank = (c) => (c - (n % c)) % c;
  panels.style.setProperty("--columns", [4, 5, 3].reduce((best, c) => (blank(c) < blank(best) ? c : best)));
}

// {labels: [...], panels: [{name, rows, columns, frames: [base64 of rows x columns bytes, 128 is zero], limit}]}
function frames(block) {
  const figure = captioned(block), tip = tooltip(figure), last = block.labels.length - 1;
  const input = element("input", { type: "range", min: 0, max: last, value: last, "aria-label": "checkpoint" });
  const output = element("output"), panels = element("div", { class: "panels" });
  const views = block.panels.map((panel) => {
    const canvas = element("canvas", { width: panel.columns, height: panel.rows });
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect(), j = Math.floor(((event.clientX - box.left) / box.width) * panel.columns);
      const i = Math.floor(((event.clientY - box.top) / box.height) * panel.rows);
      if (i < 0 || j < 0 || i >= panel.rows || j >= panel.columns) return;
      const value = ((canvas.shown[i * panel.columns + j] - 128) / 127) * panel.limit;
      tip.show(event, [panel.name, `row ${i + 1}, column ${j + 1}: ${short(value)}`]);
    });
    canvas.addEventListener("pointerleave", () => tip.hide());
    panels.append(element("div", {}, element("div", { class: "note" }, panel.name), canvas));
    return { panel, canvas };
  });
  function draw() {
    output.textContent = block.labels[input.value];
    for (const { panel, canvas } of views) {
      canvas.shown = bytes(panel.frames[input.value]);
      const context = canvas.getContext("2d"), image = context.createImageData(panel.columns, panel.rows);
      canvas.shown.forEach((b, i) => {
        const t = Math.max(-1, (b - 128) / 127), fade = 255 * (1 - Math.abs(t));
        image.data.set(t < 0 ? [fade + 0.2 * (255 - fade), fade + 0.4 * (255 - fade), 255 - 60 * -t, 255] : [255 - 40 * t, fade + 0.25 * (255 - fade), fade, 255], 4 * i);
      });
      context.putImageData(image, 0, 0);
    }
  }
  input.addEventListener("input", draw);
  figure.append(element("div", { class: "slider" }, input, output), panels);
  filled(panels);
  draw();
  return figure;
}

// {labels, panels: [{name, frames: [base64 of x, y bytes]}], classes, class_names}: points that move with the slider
function places(block) {
  const figure = captioned(block), tip = tooltip(figure), last = block.labels.length - 1, off = new Set();
  const input = element("input", { type: "range", min: 0, max: last, value: last, "aria-label": "checkpoint" });
  const output = element("output"), panels = element("div", { class: "panels" }), ink = (c) => (c < 0 ? "var(--soft)" : `var(--k${c % 10})`);
  const views = block.panels.map((panel) => {
    const svg = shape("svg", { viewBox: "-6 -6 267 267", class: "places", role: "img", "aria-label": panel.name });
    const dots = block.classes.map((c, row) => shape("circle", { r: 3.4, fill: ink(c), "data-row": row }));
    svg.append(...dots);
    svg.addEventListener("pointermove", (event) => {
      const c = block.classes[event.target.dataset?.row];
      c === undefined ? tip.hide() : tip.show(event, [panel.name, c < 0 ? "no label" : `class ${block.class_names[c] ?? c}`]);
    });
    svg.addEventListener("pointerleave", () => tip.hide());
    panels.append(element("div", {}, element("div", { class: "note" }, panel.name), svg));
    return { panel, dots };
  });
  function draw() {
    output.textContent = block.labels[input.value] ?? "";
    for (const { panel, dots } of views) {
      const at = bytes(panel.frames[Math.min(input.value, panel.frames.length - 1)]);
      dots.forEach((dot, row) => {
        dot.setAttribute("transform", `translate(${at[2 * row]} ${255 - at[2 * row + 1]})`);
        dot.style.display = off.has(block.classes[row]) ? "none" : "";
      });
    }
  }
  input.addEventListener("input", draw);
  if (last > 0) figure.append(element("div", { class: "slider" }, input, output));
  const legend = element("div", { class: "legend" });
  legend.append(...switches(block.class_names.map((name, c) => [name, ink(c)]), off, draw));
  figure.append(panels, legend);
  filled(panels);
  draw();
  return figure;
}

// {names, merges: [[node, node, distance, leaves]], order}: a tree that grows from the right; distance 0 stands at the names
function tree(block) {
  const figure = captioned(block), svg = shape("svg", { role: "img", "aria-label": block.title }), tip = tooltip(figure);
  const n = block.names.length, step = 24, top = 6, far = Math.max(...block.merges.map((m) => m[2])) || 1;
  figure.append(svg);
  atWidth(figure, (W) => {
    const label = Math.min(0.45 * W, 14 + 7 * Math.max(...block.names.map((name) => name.length))), H = top + n * step + 34;
    const X = (d) => W - label - 8 - (d / far) * (W - label - 24), place = new Map();
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.setAttribute("height", H);
    svg.replaceChildren();
    for (const t of ticks(0, far, Math.max(2, W / 160))) {
      svg.append(shape("line", { class: "axis", x1: X(t), x2: X(t), y1: top, y2: H - 32 }));
      svg.append(shape("text", { x: X(t), y: H - 18, "text-anchor": "middle" }, short(t)));
    }
    svg.append(shape("text", { x: X(far / 2), y: H - 3, "text-anchor": "middle" }, "1 − similarity"));
    block.order.forEach((leaf, i) => {
      place.set(leaf, { x: X(0), y: top + (i + 0.5) * step });
      const name = shape("text", { class: "leaf", x: X(0) + 8, y: top + (i + 0.5) * step + 4 }, block.names[leaf]);
      name.append(shape("title", {}, block.names[leaf]));
      svg.append(name);
    });
    block.merges.forEach(([a, b, distance, leaves], i) => {
      const p = place.get(a), q = place.get(b), x = X(distance);
      const branch = shape("path", { class: "branch", d: `M${p.x} ${p.y}H${x}V${q.y}H${q.x}` });
      branch.addEventListener("pointermove", (event) => tip.show(event, [`${leaves} models`, `joined at ${short(distance)}`]));
      branch.addEventListener("pointerleave", () => tip.hide());
      svg.append(branch);
      place.set(n + i, { x, y: (p.y + q.y) / 2 });
    });
  })();
  return figure;
}

// {rows, columns, values}: numbers as coloured cells; blank where null
function matrix(block) {
  const figure = captioned(block), flat = block.values.flat().filter((v) => v !== null);
  const low = block.low ?? Math.min(...flat), high = block.high ?? Math.max(...flat);
  const body = block.values.map((row, i) => element("tr", {}, element("th", {}, block.rows[i]), ...row.map((v, j) => {
    const share = v === null ? 0 : Math.max(0, Math.min(1, (v - low) / (high - low || 1)));
    return element("td", { style: `background:color-mix(in srgb, var(--c0) ${Math.round(70 * share)}%, transparent)`, title: `${block.rows[i]}, ${block.columns[j]}: ${short(v)}` }, v === null ? "" : v.toFixed(2));
  })));
  const head = element("tr", {}, element("th"), ...block.columns.map((c) => element("th", {}, c)));
  figure.append(element("div", { class: "scroll" }, element("table", { class: "cells" }, element("thead", {}, head), element("tbody", {}, ...body))));
  return figure;
}

// {columns, rows}
function table(block) {
  const figure = captioned(block), cells = (row, tag) => element("tr", {}, ...row.map((v) => element(tag, {}, typeof v === "number" ? String(short(v)) : v ?? "–")));
  figure.append(element("div", { class: "scroll" }, element("table", {}, element("thead", {}, cells(block.columns, "th")), element("tbody", {}, ...block.rows.map((r) => cells(r, "td"))))));
  return figure;
}

// {queries: [{image, rows: [{label, images: [uri], right: [bool]}]}]}
function strips(block) {
  const figure = captioned(block), inner = element("div", { class: "scroll" });
  for (const query of block.queries) {
    for (const row of query.rows) {
      const images = row.images.map((src, i) => element("img", { src, alt: row.right[i] ? "same class" : "another class", class: row.right[i] ? "right" : "wrong" }));
      inner.append(element("div", { class: "strip" }, element("span", {}, row.label), element("img", { src: query.image, alt: "query", class: "query" }), ...images));
    }
    inner.append(element("hr", { style: "border:0;height:.5rem" }));
  }
  figure.append(inner);
  return figure;
}

// {entries: {key: value}}
function entries(block) {
  const figure = captioned(block), list = element("dl");
  for (const [key, value] of Object.entries(block.entries)) list.append(element("dt", {}, key), element("dd", {}, String(value)));
  figure.append(list);
  return figure;
}

// Two columns where there is room: what is wide stands alone, and so does a chart that would leave the place beside it blank.
function arranged(figures) {
  let row = [];
  const wide = (figure) => ["frames", "places", "tree", "strips", "entries"].includes(figure.dataset.kind) ||
    (figure.dataset.kind !== "lines" && figure.querySelectorAll("thead th").length > 5);
  for (const figure of [...figures, null]) {
    if (figure && !wide(figure)) { row.push(figure); continue; }
    if (row.length % 2) row.at(-1).classList.add("wide");
    row = [];
    figure?.classList.add("wide");
  }
  return figures;
}

const KINDS = { lines, frames, places, tree, matrix, table, strips, entries };
const report = JSON.parse(document.getElementById("report").textContent);
const main = document.querySelector("main"), nav = document.querySelector("nav");
report.sections.forEach((section, i) => {
  nav.append(element("a", { href: `#s${i}` }, section.title));
  main.append(element("h2", { id: `s${i}` }, section.title));
  if (section.note) main.append(element("p", { class: "lead" }, section.note));
  main.append(element("div", { class: "figures" }, ...arranged(section.blocks.map((block) => KINDS[block.kind](block)))));
});
document.body.dataset.drawn = document.querySelectorAll("figure").length;
