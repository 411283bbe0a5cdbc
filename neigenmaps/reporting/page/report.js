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

function ticks(low, high, n = 5) {
  const raw = (high - low) / n, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

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

// {series: [{name, x, y, low?, high?, dashed?}], x_label, y_label, log2?: bool}; low and high draw a band
function lines(block) {
  const figure = captioned(block), W = 560, H = 300, left = 52, right = 12, top = 12, bottom = 40;
  const svg = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": block.title });
  const legend = element("div", { class: "legend" });
  figure.append(svg, legend);
  const tip = tooltip(figure), off = new Set(), along = block.log2 ? Math.log2 : (v) => v;
  const numbers = (s, keys) => keys.flatMap((k) => s[k] || []).filter((v) => v !== null);
  let scales;

  function draw() {
    const shown = block.series.filter((_, i) => !off.has(i));
    const xs = shown.flatMap((s) => s.x).map(along), ys = shown.flatMap((s) => numbers(s, ["y", "low", "high"]));
    svg.replaceChildren();
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
    const marks = block.log2 ? [...new Set(xs)].sort((a, b) => a - b).map((v) => 2 ** v) : ticks(x0, x1, 6);
    for (const t of marks) svg.append(shape("text", { x: X(t), y: H - bottom + 16, "text-anchor": "middle" }, Math.round(t * 100) / 100));
    svg.append(shape("text", { x: (W + left) / 2, y: H - 6, "text-anchor": "middle" }, block.x_label));
    block.series.forEach((s, i) => {
      if (off.has(i)) return;
      if (s.low && s.high) {
        const edge = [...s.x.map((x, j) => [X(x), Y(s.high[j])]), ...s.x.map((x, j) => [X(x), Y(s.low[j])]).reverse()];
        svg.append(shape("polygon", { points: edge.join(" "), fill: colour(s.colour ?? i), opacity: 0.14 }));
      }
      const points = s.x.map((x, j) => (s.y[j] === null ? null : [X(x), Y(s.y[j])])).filter(Boolean);
      const style = { fill: "none", stroke: colour(s.colour ?? i), "stroke-width": 2, "stroke-dasharray": s.dashed ? "5 4" : "none" };
      svg.append(shape("polyline", { points: points.join(" "), ...style }));
      if (points.length <= 24) for (const [x, y] of points) svg.append(shape("circle", { cx: x, cy: y, r: 2.6, fill: colour(s.colour ?? i) }));
    });
    svg.append(shape("line", { id: "cursor", class: "axis", y1: top, y2: H - bottom, x1: -9, x2: -9 }));
  }

  svg.addEventListener("pointermove", (event) => {
    if (!scales) return;
    const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * W;
    const xs = [...new Set(scales.shown.flatMap((s) => s.x))];
    const x = xs.reduce((best, v) => (Math.abs(scales.X(v) - at) < Math.abs(scales.X(best) - at) ? v : best), xs[0]);
    const cursor = svg.querySelector("#cursor");
    cursor.setAttribute("x1", scales.X(x)); cursor.setAttribute("x2", scales.X(x));
    const values = scales.shown.filter((s) => s.x.includes(x)).map((s) => {
      const j = s.x.indexOf(x), band = s.low && s.high ? ` (${short(s.low[j])} to ${short(s.high[j])})` : "";
      return `${s.name}: ${short(s.y[j])}${band}`;
    });
    tip.show(event, [`${block.x_label} ${short(x)}`, ...values]);
  });
  svg.addEventListener("pointerleave", () => tip.hide());
  block.series.forEach((s, i) => {
    const button = element("button", { "aria-pressed": "true", type: "button" },
      element("span", { class: "swatch", style: `background:${colour(s.colour ?? i)}` }), s.name);
    button.onclick = () => { off.has(i) ? off.delete(i) : off.add(i); button.setAttribute("aria-pressed", !off.has(i)); draw(); };
    legend.append(button);
  });
  draw();
  return figure;
}

// {labels: [...], panels: [{name, rows, columns, frames: [base64 of rows x columns bytes, 128 is zero], limit}]}
function frames(block) {
  const figure = captioned(block), tip = tooltip(figure), last = block.labels.length - 1;
  const input = element("input", { type: "range", min: 0, max: last, value: last, "aria-label": block.slider_label || "checkpoint" });
  const output = element("output"), panels = element("div", { class: "panels" });
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
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
  draw();
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

const KINDS = { lines, frames, matrix, table, strips, entries };
const report = JSON.parse(document.getElementById("report").textContent);
const main = document.querySelector("main"), nav = document.querySelector("nav");
report.sections.forEach((section, i) => {
  nav.append(element("a", { href: `#s${i}` }, section.title));
  main.append(element("h2", { id: `s${i}` }, section.title));
  if (section.note) main.append(element("p", { class: "lead" }, section.note));
  main.append(element("div", { class: "figures" }, ...section.blocks.map((block) => KINDS[block.kind](block))));
});
document.body.dataset.drawn = document.querySelectorAll("figure").length;
