// The page without a network: sorts and filters the table, and draws a figure for each layer that is opened.
// Every text from a checkpoint enters the page as text (textContent), never as markup.
"use strict";
(() => {
  const report = JSON.parse(document.getElementById("data").textContent);
  const layers = report.checkpoints.flatMap((checkpoint) => checkpoint.layers);
  const table = document.getElementById("layers");
  const SVG = "http://www.w3.org/2000/svg";

  // ------------------------------------------------------------------------------------------------ text and numbers

  const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;
  const visible = (text) => String(text).replace(HIDDEN, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
  const NUMBER = /[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf)/;

  /** The number that a cell begins with; null where there is none, which sorts last whatever the direction. */
  function numberIn(text) {
    const match = text.startsWith("—") ? null : NUMBER.exec(text);
    return match ? (match[0].endsWith("inf") ? Infinity : Number(match[0])) : null;
  }

  function short(value, digits = 5) {
    if (value === null || value === undefined) return "—";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-4 && size < 1e6 ? String(Number(value.toPrecision(digits))) : value.toExponential(digits - 1);
  }

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function drawn(name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // --------------------------------------------------------------------------------------------- sorting and filtering

  const collator = new Intl.Collator("en", { numeric: true });

  function ordered(rows, column, numeric, sign) {
    const keyed = rows.map((row) => {
      const text = row.cells[column].textContent.trim();
      return { row, key: numeric ? numberIn(text) : text, place: Number(row.dataset.layer) };
    });
    keyed.sort((a, b) => {
      if ((a.key === null) !== (b.key === null)) return a.key === null ? 1 : -1;
      const order = a.key === b.key ? 0 : numeric ? a.key - b.key : collator.compare(a.key, b.key);
      return sign * order || a.place - b.place;
    });
    return keyed.map(({ row }) => row);
  }

  function sortBy(heading) {
    const numeric = heading.classList.contains("number");
    const before = heading.getAttribute("aria-sort");
    // Numbers are asked for from the largest, words from A.
    const direction = before === "descending" ? "ascending" : before === "ascending" ? "descending" : numeric ? "descending" : "ascending";
    for (const other of heading.parentNode.cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", direction);
    const body = table.tBodies[0];
    const details = new Map([...body.querySelectorAll("tr.detail")].map((row) => [row.previousElementSibling, row]));
    const all = document.createDocumentFragment();
    for (const row of ordered([...body.querySelectorAll("tr.layer")], heading.cellIndex, numeric, direction === "ascending" ? 1 : -1)) {
      all.append(row);
      if (details.has(row)) all.append(details.get(row));
    }
    body.append(all);
  }

  function filter(words) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of table.tBodies[0].rows) {
      if (row.classList.contains("layer")) {
        const text = row.textContent.toLowerCase();
        row.hidden = !wanted.every((word) => text.includes(word));
        count += row.hidden ? 0 : 1;
      }
    }
    for (const row of table.tBodies[0].querySelectorAll("tr.detail")) row.hidden = row.previousElementSibling.hidden;
    const total = table.querySelectorAll("tr.layer").length;
    const unit = total !== layers.length ? "rows" : total === 1 ? "layer" : "layers";
    document.getElementById("count").textContent = `${count} of ${total} ${unit}`;
  }

  // ------------------------------------------------------------------------------------------------------------ figures

  function frame(width, height, label) {
    return drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  }

  function decades(low, high) {
    const found = [];
    const steps = high / low > 200 ? [1] : high / low > 6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1)
      for (const step of steps) if (step * 10 ** power >= low && step * 10 ** power <= high) found.push(step * 10 ** power);
    const every = Math.ceil(found.length / 7);
    return found.filter((_, place) => place % every === 0);
  }

  const logScale = (low, high, from, to) => (value) => from + ((to - from) * Math.log(value / low)) / Math.log(high / low);

  /** Rank against value, from what the report carries: quantiles, the ends, and the histogram's counts. */
  function rankCurve(spectrum) {
    const points = [[0, spectrum.max], [1, spectrum.min]];
    for (const [share, value] of Object.entries(spectrum.quantiles)) points.push([1 - Number(share), value]);
    if (spectrum.histogram) {
      const { top, counts } = spectrum.histogram;
      const total = counts.reduce((sum, count) => sum + count, 0);
      let above = 0;
      for (let bin = counts.length - 1; bin > 0; bin -= 1) {
        above += counts[bin];
        if (above && above < total) points.push([above / total, (bin * top) / counts.length]);
      }
    }
    return points.filter(([, value]) => value > 0).sort((a, b) => a[0] - b[0] || b[1] - a[1]);
  }

  function spectrumFigure(spectrum) {
    const points = rankCurve(spectrum);
    const high = spectrum.max;
    const low = Math.max(1e-6 * high, Math.min(high / 2, ...points.filter(([at]) => at < 0.999).map(([, value]) => value)));
    const svg = frame(360, 200, "singular values by rank, logarithmic");
    const y = logScale(low, high, 172, 12);
    const x = (at) => 44 + 306 * at;
    for (const value of decades(low, high)) {
      svg.append(drawn("line", { class: "axis", x1: 44, x2: 350, y1: y(value), y2: y(value) }));
      svg.append(drawn("text", { x: 39, y: y(value) + 3.5, "text-anchor": "end" }, short(value, 3)));
    }
    const line = points.map(([at, value]) => `${x(at).toFixed(1)},${Math.min(y(Math.max(value, low * 0.8)), 176).toFixed(1)}`);
    svg.append(drawn("polyline", { class: "curve", points: line.join(" ") }));
    for (const [at, anchor, words] of [[0, "start", "0: largest"], [0.5, "middle", "rank / count"], [1, "end", "1: smallest"]])
      svg.append(drawn("text", { x: x(at), y: 192, "text-anchor": anchor }, words));
    return svg;
  }

  function histogramFigure(spectrum) {
    const { top, counts } = spectrum.histogram;
    const last = counts.reduce((found, count, bin) => (count ? bin : found), 0) + 1;
    const most = Math.max(...counts);
    const svg = frame(360, 200, "histogram of the singular values");
    const width = 330 / last;
    counts.slice(0, last).forEach((count, bin) => {
      const height = count ? Math.max(1, (160 * count) / most) : 0;
      svg.append(drawn("rect", { class: "area", x: 20 + bin * width, y: 172 - height, width: Math.max(0.5, width - 0.6), height }));
    });
    svg.append(drawn("line", { class: "axis", x1: 20, x2: 350, y1: 172.5, y2: 172.5 }));
    const end = (last * top) / counts.length;
    for (const share of [0, 0.25, 0.5, 0.75, 1])
      svg.append(drawn("text", { x: 20 + 330 * share, y: 190, "text-anchor": share ? (share < 1 ? "middle" : "end") : "start" }, short(share * end, 3)));
    return svg;
  }

  function mark(bound, x, y) {
    if (bound.guarantee !== "certified") return drawn("circle", { class: "estimate", cx: x, cy: y, r: 3.2 });
    if (bound.of !== "any size") return drawn("rect", { class: "sized", x: x - 2.8, y: y - 2.8, width: 5.6, height: 5.6 });
    const tip = bound.side === "upper" ? -4 : 4;
    return drawn("path", { class: bound.side, d: `M${x + tip},${y} l${-2 * tip},-4 v8 z` });
  }

  function boundsFigure(layer) {
    const bounds = Object.entries(layer.results.bounds).filter(([, bound]) => bound.value > 0).sort((a, b) => a[1].value - b[1].value);
    const values = bounds.map(([, bound]) => bound.value).concat(layer.norm.upper);
    const low = Math.min(...values) / 1.1, high = Math.max(...values) * 1.1;
    const height = 34 + 15 * bounds.length;
    const svg = frame(440, height, "published bounds beside the certified norm");
    const x = logScale(low, high, 134, 380);
    for (const value of decades(low, high)) {
      svg.append(drawn("line", { class: "axis", x1: x(value), x2: x(value), y1: 4, y2: height - 24 }));
      svg.append(drawn("text", { x: x(value), y: height - 10, "text-anchor": "middle" }, short(value, 3)));
    }
    const [left, right] = [x(Math.max(layer.norm.lower, low)), x(layer.norm.upper)];
    svg.append(drawn("rect", { class: "band", x: left, y: 4, width: Math.max(1.2, right - left), height: height - 28 }));
    bounds.forEach(([name, bound], row) => {
      const y = 12 + 15 * row;
      svg.append(drawn("text", { x: 128, y: y + 3.5, "text-anchor": "end", class: "strong" }, visible(name)));
      svg.append(mark(bound, x(bound.value), y));
      svg.append(drawn("text", { x: 438, y: y + 3.5, "text-anchor": "end" }, short(bound.value)));
    });
    return svg;
  }

  function figure(caption, svg) {
    return element("figure", {}, element("figcaption", {}, caption), svg);
  }

  function figuresOf(layer) {
    const box = element("div", { class: "figures" });
    for (const [method, result] of Object.entries(layer.results)) {
      if (method === "bounds") continue;
      const about = `${method}: ${result.of}, ${result.guarantee}, ${result.count} values`;
      if (result.kind !== "leading" && result.max > 0) box.append(figure(`Spectrum · ${about}`, spectrumFigure(result)));
      if (result.histogram && result.max > 0) box.append(figure(`How many values lie where · ${method}`, histogramFigure(result)));
    }
    if (layer.results.bounds && layer.norm && layer.norm.upper > 0) {
      const how = "▸ lower, ◂ upper (certified, any size); □ of one size; ○ an estimate; the bar is the certified norm";
      box.append(figure(`Published bounds · ${how}`, boundsFigure(layer)));
    }
    return box;
  }

  // ------------------------------------------------------------------------------------------------------------ details

  const interval = (norm) => `[${norm.lower}, ${norm.upper}] · ${norm.of} · ${norm.guarantee}`;

  function factsOf(layer) {
    const facts = [["weight", layer.weight], ["stored", `${layer.shape.join("×")} ${layer.dtype}`]];
    if (layer.norm) facts.push(["norm", interval(layer.norm)]);
    if (layer.norm_at_size) facts.push(["norm at size", interval(layer.norm_at_size)]);
    if (layer.symbol_min) facts.push(["symbol min", interval(layer.symbol_min)]);
    for (const [method, found] of Object.entries(layer.results)) {
      if (method === "bounds") continue;
      const condition = found.condition === null ? "—" : short(found.condition);
      facts.push([method, `largest ${short(found.max, 8)}, smallest ${short(found.min, 8)}, condition ${condition}, stable rank ${short(found.stable_rank)}`]);
    }
    const { origin, ...geometry } = layer.geometry;
    for (const [name, value] of Object.entries(geometry)) {
      if (name === "output_padding" && !layer.geometry.transposed) continue;
      facts.push([name.replaceAll("_", " "), [].concat(value).map((item) => [].concat(item).join(":")).join("×"), origin[name]]);
    }
    if (layer.folded) facts.push(["folded in", layer.folded]);
    for (const [what, why] of Object.entries(layer.unavailable)) facts.push([`no ${what}`, why]);
    for (const note of layer.notes) facts.push(["note", note]);
    const list = element("dl");
    for (const [term, value, from] of facts) {
      const said = element("dd", {}, visible(value));
      if (from) said.append(element("span", { class: from === "assumed" ? "guess" : "muted" }, ` (${from})`));
      list.append(element("dt", {}, visible(term)), said);
    }
    return list;
  }

  function toggle(button) {
    const row = button.closest("tr");
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) {
      row.nextElementSibling.remove();
      return;
    }
    const layer = layers[Number(row.dataset.layer)];
    const panel = element("div", { class: "panel" }, figuresOf(layer), factsOf(layer));
    const cell = element("td", { colspan: row.cells.length }, panel);
    row.after(element("tr", { class: "detail", "data-layer": row.dataset.layer }, cell));
    fitPanels();
  }

  /** Keep an opened panel as wide as what is seen of the table, which may itself be wider. */
  function fitPanels() {
    const scroll = document.querySelector(".scroll");
    if (scroll) document.documentElement.style.setProperty("--view", `${scroll.clientWidth}px`);
  }

  // ----------------------------------------------------------------------------------------------------------- overview

  function overview(box, checkpoint) {
    const norms = checkpoint.layers.map((layer) => layer.norm && layer.norm.upper);
    const known = norms.filter((norm) => norm > 0);
    if (!known.length) return;
    const low = Math.min(...known) / 1.3, high = Math.max(...known) * 1.1;
    const svg = frame(320, 74, `certified norm of each layer in order, from ${short(Math.min(...known), 3)} to ${short(Math.max(...known), 3)}`);
    const y = logScale(low, high, 66, 6);
    const step = 274 / norms.length;
    for (const value of decades(low, high).filter((_, place, all) => place === 0 || place === all.length - 1)) {
      svg.append(drawn("line", { class: "axis", x1: 36, x2: 316, y1: y(value), y2: y(value) }));
      svg.append(drawn("text", { x: 32, y: y(value) + 3.5, "text-anchor": "end" }, short(value, 3)));
    }
    norms.forEach((norm, place) => {
      if (!(norm > 0)) return;
      const x = 40 + step * (place + 0.5);
      svg.append(drawn("line", { class: "stem", x1: x, x2: x, y1: y(norm), y2: 70 }));
      svg.append(drawn("circle", { class: "area", cx: x, cy: y(norm), r: Math.min(3, Math.max(1.4, step * 0.45)) }));
    });
    box.append(svg);
  }

  document.querySelectorAll("[data-overview]").forEach((box) => overview(box, report.checkpoints[Number(box.dataset.overview)]));
  if (table) {
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) sortBy(button.closest("th"));
    });
    table.tBodies[0].addEventListener("click", (event) => {
      const button = event.target.closest("button[aria-expanded]");
      if (button) toggle(button);
    });
    const search = document.getElementById("filter");
    search.addEventListener("input", () => filter(search.value));
    filter(search.value);
    addEventListener("resize", fitPanels);
  }
  document.documentElement.dataset.ready = "yes";
})();
