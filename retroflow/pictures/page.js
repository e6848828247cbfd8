// Shows the JSON of this page. Every text from it is put into the page as text, never as markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/* ---------- making elements ---------- */

function make(name, attributes = {}, ...children) {
  const isDrawn = ["svg", "line", "rect", "path", "circle", "text", "g", "title"].includes(name);
  const element = isDrawn ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

// Characters that are invisible, or that change the order in which others are shown, are shown by their numbers.
const HIDDEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180e" +
  "\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]|[\\u{e0000}-\\u{e007f}]", "gu");

function shown(text, breaks = false) {
  const parts = [];
  let done = 0;
  const wanted = breaks ? new RegExp(HIDDEN.source + "|\\n", "gu") : HIDDEN;
  for (const found of text.matchAll(wanted)) {
    parts.push(text.slice(done, found.index));
    done = found.index + found[0].length;
    if (found[0] === "\n") parts.push(make("span", { class: "break", "aria-hidden": "true" }, "\u21b5"), "\n");
    else {
      const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      parts.push(make("span", { class: "control", title: "an invisible character" }, "U+" + code));
    }
  }
  parts.push(text.slice(done));
  return parts.filter((part) => part !== "");
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const fixed = (value, digits = 4) => (isNumber(value) ? value.toFixed(digits) : "");
function signed(value, digits = 3) {
  const text = isNumber(value) ? value.toFixed(digits) : "";
  return text === "" ? "" : Number(text) === 0 ? text.replace("-", "") : (value > 0 ? "+" : "") + text;
}
const percent = (value, digits = 1) => (isNumber(value) ? (100 * value).toFixed(digits) + "%" : "");
const whole = (value) => (isNumber(value) ? value.toLocaleString("en-US") : "");

/* ---------- sections ---------- */

const main = document.getElementById("main");
const contents = document.getElementById("contents");

function section(id, title, ...children) {
  contents.append(make("a", { href: "#" + id }, title));
  const made = make("section", { id, "aria-labelledby": id + "-title" }, make("h2", { id: id + "-title" }, title), children);
  main.append(made);
  return made;
}

function header() {
  document.getElementById("kind").textContent = data.kind === "report" ? "retroflow report" : "retroflow inspect";
  document.getElementById("title").append(...shown(data.title));
  document.getElementById("made").textContent = `Made ${data.made.at} with retroflow ${data.made.retroflow}`;
  const button = document.getElementById("theme");
  const isDark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.setAttribute("aria-label", "Change between light and dark");
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();
}

/* ---------- tables ---------- */

// A column: key, label, text(value, row), and optionally draw(row) for a picture in place of a text.
function table(spec, columns, rowClass = () => "") {
  const used = columns.filter((column) => column.draw || spec.rows.some((row) => column.text(row[column.key], row) !== ""));
  const head = make("tr", { role: "row" }, used.map((column) =>
    make("th", { scope: "col", role: "columnheader", class: column.draw || column.first ? "" : "number" }, column.label)));
  const body = spec.rows.map((row) => make("tr", { role: "row", class: rowClass(row), "data-row": row.name },
    used.map((column) => {
      if (column.first) {
        return make("th", { scope: "row", role: "rowheader" }, shown(String(row[column.key])),
          row.meaning ? make("small", {}, shown(String(row.meaning))) : null);
      }
      const label = { role: "cell", "data-key": column.key, "data-label": column.label };
      if (column.draw) return make("td", { role: "cell", class: "bar" }, column.draw(row));
      const text = column.text(row[column.key], row);
      return make("td", { ...label, class: "number" }, ...shown(text));
    })));
  return make("table", { class: "stacked" + (used.length > 6 ? " wide" : ""), role: "table", id: "table-" + spec.name },
    make("caption", {}, make("b", {}, shown(spec.title)), make("span", { class: "quiet" }, shown(spec.note || ""))),
    make("thead", { role: "rowgroup" }, head), make("tbody", { role: "rowgroup" }, body));
}

// Bars of gains around a common zero, with their intervals.
function gainBars(rows) {
  const values = rows.flatMap((row) => [row.gain, ...(row.gain_interval || [])]).filter(isNumber);
  const low = Math.min(0, ...values), high = Math.max(0, ...values), width = high - low || 1;
  const at = (value) => (200 * (value - low)) / width;
  return (row) => {
    if (!isNumber(row.gain)) return null;
    const bounds = row.gain_interval;
    const text = `gain ${signed(row.gain)} nats per token` + (bounds ? `, 95% interval ${signed(bounds[0])} to ${signed(bounds[1])}` : "");
    const [from, to] = [at(Math.min(0, row.gain)), at(Math.max(0, row.gain))];
    return make("svg", { viewBox: "0 0 200 20", preserveAspectRatio: "none", role: "img", "aria-label": text },
      make("title", {}, text),
      make("rect", { x: from, y: 5, width: Math.max(to - from, 0.4), height: 10, class: row.gain < 0 ? "lost" : "gained" }),
      make("line", { x1: at(0), x2: at(0), y1: 0, y2: 20, class: "zero" }),
      bounds ? make("path", { class: "whisker", d: `M${at(bounds[0])} 6V14M${at(bounds[0])} 10H${at(bounds[1])}M${at(bounds[1])} 6V14` }) : null);
  };
}

function lossTable(spec) {
  const between = (bounds, digits, show) => (bounds ? `${show(bounds[0], digits)} to ${show(bounds[1], digits)}` : "");
  const differ = new Set(spec.rows.map((row) => row.sequences)).size > 1;
  const columns = [
    { key: "name", label: "Retrieval", first: true, text: String },
    { key: "gain", label: "Below off", draw: gainBars(spec.rows), text: () => "" },
    { key: "nats", label: "Nats per token", text: (value) => fixed(value) },
    { key: "bits_per_byte", label: "Bits per byte", text: (value) => fixed(value) },
    { key: "word_perplexity", label: "Word perplexity", text: (value) => (value >= 1e6 ? value.toExponential(2) : fixed(value, value < 100 ? 2 : 0)) },
    { key: "gain", label: "Gain", text: (value) => signed(value) },
    { key: "gain_interval", label: "95% interval", text: (value) => between(value, 3, signed) },
    { key: "recovered", label: "Recovered", text: (value, row) => percent(value, 0) + (row.recovered_interval ? ` (${between(row.recovered_interval, 0, percent)})` : "") },
    { key: "seconds_per_token", label: "ms per token", text: (value) => (isNumber(value) ? String(Number((1000 * value).toPrecision(3))) : "") },
    { key: "computation_per_token", label: "Passes per token", text: (value) => fixed(value, 1) },
    { key: "memory", label: "GiB", text: (value) => (isNumber(value) ? fixed(value / 2 ** 30, 2) : "") },
    { key: "sequences", label: "Sequences", text: (value) => (differ ? whole(value) : "") },
  ];
  return make("div", { class: "card" }, table(spec, columns, (row) => (row.name === "on" ? "rowed-on" : "")));
}

function results() {
  const verdict = data.verdict;
  const box = make("div", { class: `card verdict ${verdict.level}`, id: "verdict" }, make("p", { class: "sentence" }, verdict.sentence),
    verdict.overlap ? make("p", { id: "overlap" }, verdict.overlap) : null,
    verdict.warnings.map((text) => make("p", { class: "alarm", role: "alert" }, shown(text))));
  for (const [title, sentences] of Object.entries(data.findings)) {
    box.append(make("h3", {}, title), make("ul", { class: "findings" }, sentences.map((text) => make("li", {}, shown(text)))));
  }
  section("results", "Results", box, data.tables.map(lossTable));
}

function breakdowns() {
  if (!data.breakdowns.length) return;
  const cards = data.breakdowns.map((spec) => {
    const most = Math.max(...spec.rows.flatMap((row) => [row.on, row.off]), 0) || 1;
    const pair = (row) => {
      const text = `loss with retrieval ${fixed(row.on, 3)}, without ${fixed(row.off, 3)}`;
      return make("svg", { viewBox: "0 0 200 20", preserveAspectRatio: "none", role: "img", "aria-label": text }, make("title", {}, text),
        make("rect", { x: 0, y: 1, width: (200 * row.off) / most, height: 8, class: "off-bar" }),
        make("rect", { x: 0, y: 11, width: (200 * row.on) / most, height: 8, class: "on-bar" }));
    };
    const columns = [
      { key: "name", label: "", first: true, text: String },
      { key: "bars", label: "Loss without (grey) and with", draw: pair, text: () => "" },
      { key: "off", label: "Off", text: (value) => fixed(value, 3) },
      { key: "on", label: "On", text: (value) => fixed(value, 3) },
      { key: "gain", label: "Gain", text: (value) => signed(value) },
      { key: "share_of_gain", label: "Of the gain", text: (value) => percent(value, 0) },
      { key: "tokens", label: "Tokens", text: (value) => whole(value) },
    ];
    return make("div", { class: "card" }, table(spec, columns));
  });
  section("where", "Where the gain is", make("p", { class: "quiet" }, "Nats per token; the gain is the loss without retrieval minus the loss with it."),
    make("div", { class: "grid" }, cards));
}

/* ---------- curves ---------- */

function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) found.push(Number(tick.toPrecision(12)));
  return found;
}

function panelOf(curve, panel, first) {
  const [wide, high, left, right, top, bottom] = [640, panel === curve.panels[0] ? 300 : 190, 58, 16, 14, 46];
  const all = curve.panels[0].series.flatMap((one) => one.points);
  const points = panel.series.flatMap((one) => one.points);
  const names = [...new Set(all.map((point) => point.label))];
  const isNamed = curve.scale === "names";
  const placeOf = (point) => (isNamed ? names.indexOf(point.label) : point.x);
  const isLog = curve.scale === "log" && all.every((point) => point.x > 0);
  const scaled = (value) => (isLog ? Math.log(value) : value);
  const places = all.map((point) => scaled(placeOf(point)));
  const [least, last, pad] = [Math.min(...places), Math.max(...places), isNamed ? 0.5 : 0];
  const span = last - least + 2 * pad;
  const at = (value) => left + 10 + (wide - left - right - 20) * (span ? (scaled(value) - least + pad) / span : 0.5);
  const x = (point) => at(placeOf(point));
  const heights = points.flatMap((point) => [point.y, ...(point.interval || [])]).filter(isNumber);
  let [low, most] = [Math.min(...heights), Math.max(...heights)];
  const margin = (most - low) * 0.08 || 0.1;
  low -= margin; most += margin;
  const y = (value) => top + (high - top - bottom) * (1 - (value - low) / (most - low));
  const picture = make("svg", { class: "chart", viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": `${panel.y}, over ${curve.x}; the numbers are in the table below` });
  for (const tick of ticks(low, most)) {
    picture.append(make("line", { x1: left, x2: wide - right, y1: y(tick), y2: y(tick), class: "rule" }),
      make("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  const seen = new Map(all.map((point) => [point.label, point]));
  const labelled = isNamed || seen.size <= 12
    ? [...seen.values()].map((point) => [x(point), point.label])
    : ticks(Math.min(...all.map((point) => point.x)), Math.max(...all.map((point) => point.x)), 6).filter((tick) => !isLog || tick > 0).map((tick) => [at(tick), whole(tick)]);
  for (const [place, label] of labelled) picture.append(make("text", { x: place, y: high - bottom + 18, "text-anchor": "middle" }, label));
  picture.append(make("text", { x: (left + wide - right) / 2, y: high - 8, "text-anchor": "middle", class: "label" }, curve.x));
  panel.series.forEach((one, number) => {
    const group = make("g", { class: "series-" + ((first + number) % 4) });
    if (!isNamed) group.append(make("path", { class: "curve", d: one.points.map((point, place) => `${place ? "L" : "M"}${x(point)} ${y(point.y)}`).join("") }));
    for (const point of one.points) {
      if (point.interval) group.append(make("line", { class: "error", x1: x(point), x2: x(point), y1: y(point.interval[0]), y2: y(point.interval[1]) }));
      if (one.points.length <= 25) group.append(make("circle", { class: "point", cx: x(point), cy: y(point.y), r: 4 }, make("title", {}, `${one.name}, ${point.label}: ${fixed(point.y)}`)));
    }
    picture.append(group);
  });
  const legend = make("ul", { class: "legend" }, panel.series.map((one, number) => make("li", { class: "series-" + ((first + number) % 4) }, make("i", {}), shown(one.name))));
  return [make("p", { class: "quiet" }, shown(panel.y)), picture, legend];
}

function chart(curve) {
  const series = curve.panels.flatMap((panel) => panel.series);
  const names = [...new Set(series.flatMap((one) => one.points.map((point) => point.label)))];
  const rows = names.map((name) => ({ name, recall: curve.recall[name],
    ...Object.fromEntries(series.map((one, number) => ["s" + number, one.points.find((point) => point.label === name)])) }));
  const text = (point) => (point ? fixed(point.y) + (point.interval ? ` (${fixed(point.interval[0], 3)} to ${fixed(point.interval[1], 3)})` : "") : "");
  const columns = [{ key: "name", label: curve.x, first: true, text: String },
    ...series.map((one, number) => ({ key: "s" + number, label: one.name, text })),
    { key: "recall", label: "recall", text: (value) => fixed(value, 3) }];
  let first = 0;
  const panels = curve.panels.map((panel) => {
    const made = panelOf(curve, panel, first);
    first += panel.series.length;
    return made;
  });
  return make("div", { class: "card", id: "curve-" + curve.name }, make("h3", {}, shown(curve.title)), panels,
    curve.note ? make("p", { class: "quiet" }, shown(curve.note)) : null,
    make("details", {}, make("summary", {}, "The numbers"), table({ name: "curve-" + curve.name, title: curve.title, rows }, columns)));
}

function curves() {
  if (data.curves.length) section("curves", "Curves", make("div", { class: "grid" }, data.curves.map(chart)));
}

/* ---------- the inspector ---------- */

const TOP_GAIN = 3, TOP_LOSS = 6; // nats at which colours end

function tint(element, entry, place, mode) {
  element.classList.remove("tint-gain-up", "tint-gain-down", "tint-loss");
  const [on, off] = [entry.on[place], entry.off[place]];
  if (!isNumber(on)) return;
  const value = mode === "gain" ? off - on : mode === "on" ? on : off;
  const share = Math.sqrt(Math.min(1, Math.abs(value) / (mode === "gain" ? TOP_GAIN : TOP_LOSS)));
  element.classList.add(mode === "gain" ? (value >= 0 ? "tint-gain-up" : "tint-gain-down") : "tint-loss");
  element.style.setProperty("--w", share.toFixed(3));
}

function scaleOf(mode) {
  const top = mode === "gain" ? TOP_GAIN : TOP_LOSS;
  const steps = mode === "gain" ? [-1, -0.25, -0.05, 0, 0.05, 0.25, 1] : [0, 0.05, 0.15, 0.4, 1];
  const samples = steps.map((step) => {
    const sample = make("span", {}, mode === "gain" ? signed(step * top, step % 1 ? 2 : 0) : fixed(step * top, 1));
    sample.classList.add(mode === "gain" ? (step >= 0 ? "tint-gain-up" : "tint-gain-down") : "tint-loss");
    sample.style.setProperty("--w", Math.sqrt(Math.abs(step)).toFixed(3));
    return sample;
  });
  const meaning = mode === "gain" ? "nats that retrieval saves (blue) or costs (orange)" : "nats of a token";
  return make("div", { class: "scale", id: "scale", role: "img", "aria-label": `Legend: ${meaning}` }, samples, "\u00a0" + meaning);
}

// Keys move through the options of a list: one of them can be reached with Tab, arrows reach the others.
function options(list, elements, choose, keys) {
  const focus = (number) => {
    elements.forEach((element, place) => element.setAttribute("tabindex", place === number ? "0" : "-1"));
    elements[number].focus();
  };
  elements.forEach((element, number) => element.setAttribute("tabindex", number ? "-1" : "0"));
  list.addEventListener("keydown", (event) => {
    const number = elements.indexOf(document.activeElement);
    const moved = { [keys[0]]: number - 1, [keys[1]]: number + 1, Home: 0, End: elements.length - 1 }[event.key];
    if (number >= 0 && moved !== undefined) {
      event.preventDefault();
      if (elements[moved]) focus(moved);
    } else if (number >= 0 && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      choose(number);
    }
  });
}

function describe(entry, place) {
  const parts = [make("b", {}, "\u201c", shown(entry.tokens[place], true).map((part) => (part === "\n" ? "" : part)), "\u201d"), ` ${entry.classes[place]}. `];
  const [on, off] = [entry.on[place], entry.off[place]];
  if (!isNumber(on)) parts.push("The first token is not predicted.");
  else if (!data.inspector.retrieval) parts.push(`Loss ${fixed(on, 3)} nats.`);
  else parts.push(`Loss ${fixed(on, 3)} nats with retrieval, ${fixed(off, 3)} without: gain ${signed(off - on)}.`);
  const attention = entry.attention[place];
  if (attention) {
    parts.push(data.inspector.adds_up_to_one ? " Attention to neighbours:" : ` ${percent(attention[0])} of the attention goes to neighbours:`);
    const most = attention[1].slice(0, 3).map(([neighbour, token, weight]) =>
      [" ", make("b", {}, shown(entry.neighbours[neighbour].tokens[token].replace(/\n/g, "\u21b5"))), ` ${percent(weight)}, neighbour ${neighbour + 1}`]);
    parts.push(...(most.length ? most.flatMap((one, number) => [number ? ";" : "", ...one]) : [" spread thinly"]), ".");
  } else if (isNumber(on) && data.inspector.retrieval) parts.push(" It reads no neighbour.");
  return parts;
}

function detail(entry) {
  const view = make("div", { class: "card", id: "detail" });
  const title = entry.title || entry.document || "Text";
  const where = data.kind === "report"
    ? `${entry.document}${entry.source ? ", " + entry.source : ""}; chunk ${entry.chunk + 1} of sequence ${whole(entry.sequence)}`
    : `chunk ${entry.chunk + 1}`;
  const sums = data.inspector.retrieval
    ? `Loss ${fixed(entry.loss_on, 3)} nats per token with retrieval, ${fixed(entry.loss_off, 3)} without: gain ${signed(entry.gain)}.`
    : `Loss ${fixed(entry.loss_on, 3)} nats per token.`;
  const readout = make("div", { class: "readout", role: "status", "aria-live": "polite", id: "readout" }, "Point at a token, or reach it with the arrow keys, for its numbers.");
  let mode = data.inspector.retrieval ? "gain" : "on";

  const start = entry.before.length;
  const marked = new Set(), markedBefore = new Set();
  for (const neighbour of entry.neighbours) {
    for (const [first, , length] of neighbour.runs) {
      for (let place = first; place < first + length; place += 1) (place < start ? markedBefore : marked).add(place < start ? place : place - start);
    }
  }
  const piece = (text, isShared, extra = {}) => make("span", { class: "token" + (isShared ? " shared" : ""), ...extra }, shown(text, true));
  const before = entry.before.map((text, place) => piece(text, markedBefore.has(place)));
  const tokens = entry.tokens.map((text, place) => {
    const numbers = isNumber(entry.on[place]) ? `loss ${fixed(entry.on[place], 2)}` + (data.inspector.retrieval ? ` with, ${fixed(entry.off[place], 2)} without` : "") : "not predicted";
    return piece(text, marked.has(place), { role: "option", "aria-selected": "false", "aria-label": `${text.trim() || "space"}, ${numbers}`, "data-place": place });
  });
  const cards = entry.neighbours.map((neighbour, number) => neighbourCard(neighbour, number, entry, [...before, ...tokens]));

  const show = (place) => {
    tokens.forEach((token, number) => token.setAttribute("aria-selected", String(number === place)));
    readout.replaceChildren(...describe(entry, place));
    for (const card of cards) for (const token of card.tokens) token.classList.remove("attended");
    const attention = entry.attention[place];
    const most = attention && attention[1].length ? attention[1][0][2] : 1;
    for (const [neighbour, token, weight] of attention ? attention[1] : []) {
      const element = cards[neighbour].tokens[token];
      element.classList.add("attended");
      element.style.setProperty("--a", Math.max(0.12, weight / most).toFixed(3));
    }
    const sums = new Array(cards.length).fill(0);
    for (const [neighbour, , weight] of attention ? attention[1] : []) sums[neighbour] += weight;
    cards.forEach((card, number) => card.mass.style.setProperty("--a", Math.min(1, sums[number]).toFixed(3)));
  };
  const list = make("div", { class: "text", role: "listbox", "aria-label": "Tokens of the chunk", "aria-orientation": "horizontal", id: "tokens" }, tokens);
  options(list, tokens, show, ["ArrowLeft", "ArrowRight"]);
  for (const kind of ["pointerover", "focusin", "click"]) {
    list.addEventListener(kind, (event) => {
      const token = event.target.closest("[data-place]");
      if (token) show(Number(token.dataset.place));
    });
  }

  const legend = make("div", {}, scaleOf(mode));
  const recolour = () => {
    tokens.forEach((token, place) => tint(token, entry, place, mode));
    legend.replaceChildren(scaleOf(mode));
  };
  const modes = { gain: "gain", on: "loss with retrieval", off: "loss without" };
  const chooser = make("fieldset", { class: "modes" }, make("legend", {}, "Colour"), Object.entries(modes).map(([key, label]) => {
    const input = make("input", { type: "radio", name: "mode", value: key, checked: key === mode });
    input.addEventListener("change", () => { mode = key; recolour(); });
    return make("label", {}, input, label);
  }));
  recolour();

  const heading = entry.neighbours.length ? `What it reads: ${entry.neighbours.length} neighbour${entry.neighbours.length > 1 ? "s" : ""}` : "It reads no neighbours";
  view.append(make("h3", {}, shown(title)), make("p", { class: "quiet" }, shown(where)), make("p", {}, sums));
  if (data.inspector.retrieval) view.append(chooser);
  view.append(legend);
  if (before.length) view.append(make("div", { class: "before" }, make("small", {}, "the chunk before, part of what was looked up"), make("div", { class: "text" }, before)));
  // The box sticks to the bottom of the window, and its parent keeps it off everything but the tokens.
  view.append(make("div", {}, list, readout), make("h3", {}, heading));
  const notes = [];
  if (marked.size || markedBefore.size) notes.push(`Underlined: runs of at least ${data.inspector.least_run} tokens that the text shares with a neighbour; point at one in a neighbour to see it in the text.`);
  if (data.inspector.averaged && entry.neighbours.length) {
    notes.push(`Pink: attention of the chosen token, averaged over ${data.inspector.averaged}` +
      (data.inspector.adds_up_to_one ? "; it adds up to 100% over the neighbours." : "; the rest of 100% goes to the text before it."));
  }
  if (entry.left_out) notes.push(`${entry.left_out} more neighbours got less attention and are left out.`);
  if (notes.length) view.append(make("p", { class: "quiet" }, notes.join(" ")));
  view.append(make("div", { class: "neighbours" }, cards.map((card) => card.element)));
  return view;
}

function neighbourCard(neighbour, number, entry, ownTokens) {
  const runOf = new Map();
  for (const run of neighbour.runs) for (let place = run[1]; place < run[1] + run[2]; place += 1) runOf.set(place, run);
  const tokens = neighbour.tokens.map((text, place) => make("span", { class: "token" + (runOf.has(place) ? " shared" : ""), "data-token": place }, shown(text, true)));
  const mass = make("i", {});
  const when = neighbour.found_after <= 0 ? "found before this chunk" : `found after ${neighbour.found_after} of its tokens`;
  const facts = [isNumber(neighbour.score) ? `score ${Number(neighbour.score.toPrecision(5))}` : null, `rank ${neighbour.rank + 1}`, when].filter(Boolean).join(", ");
  const origin = [neighbour.document, neighbour.source, `chunk ${whole(neighbour.row)} of the database`].filter(Boolean).join(", ");
  const cut = neighbour.continuation;
  const part = (label, of) => (of.length ? make("div", { class: "part" }, make("small", {}, label), make("div", { class: "text" }, of)) : null);
  const element = make("article", { class: "neighbour", "aria-label": `Neighbour ${number + 1}` },
    make("h4", {}, `${number + 1}. `, shown(neighbour.title || neighbour.document || "Neighbour")),
    make("p", { class: "quiet" }, facts, make("br"), shown(origin)),
    make("div", { class: "mass", "aria-hidden": "true" }, mass),
    part("neighbour", tokens.slice(0, cut)), part("continuation", tokens.slice(cut)));
  element.addEventListener("pointerover", (event) => {
    const token = event.target.closest("[data-token]");
    const run = token && runOf.get(Number(token.dataset.token));
    ownTokens.forEach((own, place) => own.classList.toggle("paired", Boolean(run) && place >= run[0] && place < run[0] + run[2]));
  });
  element.addEventListener("pointerleave", () => ownTokens.forEach((own) => own.classList.remove("paired")));
  return { element, tokens, mass };
}

const ORDERS = {
  gain: ["gain, highest first", (one, other) => other.gain - one.gain],
  worst: ["gain, lowest first", (one, other) => one.gain - other.gain],
  on: ["loss with retrieval, highest first", (one, other) => other.loss_on - one.loss_on],
  off: ["loss without, highest first", (one, other) => other.loss_off - one.loss_off],
  document: ["document", (one, other) => (one.title || one.document).localeCompare(other.title || other.document) || one.row - other.row],
};

function inspector() {
  const found = data.inspector;
  if (!found || !found.entries.length) return;
  const isReport = data.kind === "report";
  const list = make("div", { class: "list", role: "listbox", "aria-label": "Chunks", id: "chunks" });
  const place = make("div", { id: "place" });
  const count = make("p", { class: "quiet", role: "status", id: "count" });
  const search = make("input", { type: "search", id: "search", autocomplete: "off", placeholder: "words of a text or a title" });
  const orders = Object.entries(isReport ? ORDERS : { text: ["place in the text", (one, other) => one.chunk - other.chunk], ...ORDERS });
  const order = make("select", { id: "order" }, orders.filter(([key]) => isReport || key !== "document").map(([key, [label]]) => make("option", { value: key }, label)));
  const whole_text = new Map(found.entries.map((entry) => [entry, [entry.title, entry.document, entry.tokens.join("")].join("\n").toLowerCase()]));

  const open = (entry, element) => {
    for (const each of current.list.querySelectorAll(".choice")) each.setAttribute("aria-selected", String(each === element));
    place.replaceChildren(detail(entry));
  };
  const fill = () => {
    const words = search.value.trim().toLowerCase();
    const compare = Object.fromEntries(orders)[order.value][1];
    const entries = found.entries.filter((entry) => whole_text.get(entry).includes(words)).sort(compare);
    const elements = entries.map((entry) => {
      const worth = found.retrieval ? signed(entry.gain, 2) : fixed(entry.loss_on, 2);
      return make("div", { class: "choice", role: "option", "aria-selected": "false", "data-chunk": entry.chunk, "data-sequence": entry.sequence },
        make("span", { class: "name" }, shown(entry.title || entry.document || `Chunk ${entry.chunk + 1}`), entry.why ? make("span", { class: "tag" }, entry.why) : null),
        make("span", { class: "worth " + (found.retrieval ? (entry.gain >= 0 ? "helps" : "hurts") : "") }, worth),
        make("span", { class: "snippet" }, shown(entry.tokens.join("").replace(/\s+/g, " ").slice(0, 120))));
    });
    const fresh = list.cloneNode(false);
    fresh.append(...(elements.length ? elements : [make("p", { class: "empty" }, "No chunk has these words.")]));
    fresh.addEventListener("click", (event) => {
      const element = event.target.closest(".choice");
      if (element) open(entries[elements.indexOf(element)], element);
    });
    options(fresh, elements, (number) => open(entries[number], elements[number]), ["ArrowUp", "ArrowDown"]);
    fresh.addEventListener("focusin", (event) => {
      const number = elements.indexOf(event.target);
      if (number >= 0 && event.target.matches(":focus-visible")) open(entries[number], elements[number]);
    });
    current.list.replaceWith(fresh);
    current.list = fresh;
    count.textContent = `${entries.length} of ${found.entries.length} chunks`;
    const first = Math.max(0, entries.findIndex((entry) => entry.neighbours.length)); // a text's first chunk reads none
    if (entries.length) open(entries[first], elements[first]);
  };
  const current = { list };
  const about = isReport
    ? `${found.entries.length} of ${whole(found.of)} chunks: the ones with the highest gain, with the lowest, and random ones. From ${found.about}.`
    : found.about;
  section("inspector", "Inspector", make("p", { class: "quiet" }, shown(about)),
    make("div", { class: "inspector" },
      make("div", { class: "card" }, make("div", { class: "tools" }, make("label", { for: "search" }, "Search", search), make("label", { for: "order" }, found.retrieval ? "Order (the number is the gain)" : "Order (the number is the loss)", order)), count, list),
      place));
  search.addEventListener("input", fill);
  order.addEventListener("change", fill);
  fill();
}

/* ---------- how it was measured ---------- */

function facts() {
  const pairs = (values) => make("dl", {}, values.flatMap(([label, text]) => [make("dt", {}, shown(label)), make("dd", {}, shown(String(text)))]));
  const parts = [make("div", { class: "card", id: "facts" }, pairs(data.facts))];
  if (Object.keys(data.definitions).length) {
    parts.push(make("details", { class: "card" }, make("summary", {}, "What the words mean"), pairs(Object.entries(data.definitions))));
  }
  section("measured", "How it was measured", parts);
}

header();
if (data.verdict) results();
breakdowns();
curves();
inspector();
facts();
