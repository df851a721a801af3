// What the figures share: the card with its controls, pictures, probability bars and the chart. Joined behind
// interpreter.js.

const SVG = "http://www.w3.org/2000/svg";
const QUIET = 500; // ms without a move before the screen reader is told
const PLOT = { width: 440, height: 170, left: 44, right: 12, top: 26, bottom: 40 };

/** A new element: attributes as given, children appended. */
function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** A new SVG element. */
function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** An image of bytes as numbers in [0, 1]. */
function unit({ shape, data }) {
  return { shape, data: Float32Array.from(data, (v) => v / 255) };
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;

/**
 * Mounts a figure: a card with `views`, a control for each entry of the trait `controls` (or for those given: a figure
 * may have several cards), more views `below`, and a Reset button.
 * `draw(values, again)` paints the views for the values of the controls and returns a sentence for the screen reader;
 * with work left over for another frame it calls `again`.
 * Every trait is followed both ways: a move sets it, and setting it (in Python, too) moves the figure.
 * `follow(name)` says what else a move of the control `name` sets: values by name.
 */
function mount(model, el, { name, views, below = [], note, draw, follow = () => ({}), shown = model.get("controls") }) {
  const id = `advbook-${Math.random().toString(36).slice(2)}`;
  const move = (trait, value) => {
    model.set(trait, value);
    Object.entries(follow(trait)).forEach(([other, its]) => model.set(other, its));
    model.save_changes();
  };
  const controls = shown.map((control) => makeControl(model, control, `${id}-${control.name}`, move));
  const spoken = h("output", { class: "advbook-spoken", "aria-live": "polite" });
  const reset = h("button", { type: "button", class: "advbook-reset", "data-lm-suppress-shortcuts": "true" }, "Reset");
  const rows = h("div", { class: "advbook-controls" }, ...controls.map((control) => control.element));
  const foot = h("div", { class: "advbook-foot" }, h("p", { class: "advbook-note" }, note), reset);
  const card = h("div", { class: "advbook-card", role: "group", "aria-label": name }, ...views, rows, ...below, foot, spoken);
  let frame = 0;
  let quiet = 0;
  let moved = false; // since the last frame

  const paint = () => {
    const start = performance.now();
    const sentence = draw(Object.fromEntries(controls.map((control) => [control.name, model.get(control.name)])), again);
    card.dataset.frameMs = (performance.now() - start).toFixed(3);
    return sentence;
  };
  const again = () => (frame ||= requestAnimationFrame(onFrame));
  const onFrame = () => {
    frame = 0;
    const sentence = paint();
    if (!moved) return;
    moved = false;
    clearTimeout(quiet);
    quiet = setTimeout(() => (spoken.textContent = sentence), QUIET);
  };
  const onChange = () => {
    controls.forEach((control) => control.show());
    moved = true;
    again();
  };

  controls.forEach((control) => model.on(`change:${control.name}`, onChange));
  reset.addEventListener("click", () => {
    controls.forEach((control) => model.set(control.name, control.start));
    model.save_changes();
  });
  controls.forEach((control) => control.show());
  paint();
  el.append(card);
  return () => {
    controls.forEach((control) => model.off(`change:${control.name}`, onChange));
    cancelAnimationFrame(frame);
    clearTimeout(quiet);
  };
}

function makeControl(model, control, id, move) {
  const make = control.options ? makeSelect : makeRange;
  const made = make(control, id, () => model.get(control.name), (value) => move(control.name, value));
  made.element.classList.toggle("advbook-wide", Boolean(control.wide));
  return { ...control, ...made };
}

/**
 * A labelled slider in the reader's units: `per` of them are one unit of the trait (180 / pi for an angle). A `mark` is
 * a tick with its value under the track.
 */
function makeRange({ label, min, max, step, unit, per, digits, mark }, id, get, set) {
  const input = h("input", { id, type: "range", min, max, step, "data-lm-suppress-shortcuts": "true" });
  const value = h("span", { class: "advbook-value", "aria-hidden": "true" });
  input.addEventListener("input", () => set(input.valueAsNumber / per));
  const show = () => {
    const shown = get() * per;
    // A thumb that already stands on the nearest step is left alone, or it would jump under the reader's finger.
    if (Math.abs(input.valueAsNumber - shown) > step / 2) input.value = shown;
    const text = `${shown.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−")}${unit}`;
    value.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  const head = h("div", { class: "advbook-head" }, h("label", { for: id }, label), value);
  const element = h("div", { class: "advbook-control" }, head, input);
  if (mark !== undefined) {
    // The middle of the thumb, 16 px wide, runs from 8 px to 8 px before the end.
    const share = (mark - min) / (max - min);
    const style = `left: calc(${8 - 16 * share}px + ${100 * share}%)`;
    element.append(h("div", { class: "advbook-marks", "aria-hidden": "true" }, h("span", { style }, `${mark}${unit}`)));
  }
  return { element, show };
}

function makeSelect({ label, options }, id, get, set) {
  const choices = options.map((text, i) => h("option", { value: i }, text));
  const select = h("select", { id, "data-lm-suppress-shortcuts": "true" }, ...choices);
  select.addEventListener("change", () => set(select.selectedIndex));
  const head = h("div", { class: "advbook-head" }, h("label", { for: id }, label));
  const show = () => (select.selectedIndex = get());
  return { element: h("div", { class: "advbook-control" }, head, select), show };
}

/**
 * A picture with a caption: `show(image)` takes a tensor [1, H, W] or [3, H, W] in [0, 1], `say` words for the ear and a
 * caption, `paint` does both.
 */
function makePicture() {
  const canvas = h("canvas", { role: "img" });
  const caption = h("figcaption");
  const show = ({ data, shape: [channels, height, width] }) => {
    canvas.width = width;
    canvas.height = height;
    const pixels = new ImageData(width, height);
    const area = height * width;
    for (let i = 0; i < area; i++) {
      for (let k = 0; k < 3; k++) pixels.data[4 * i + k] = 255 * data[(channels === 3 ? k : 0) * area + i];
      pixels.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  };
  const say = (words, text) => {
    canvas.setAttribute("aria-label", words);
    caption.textContent = text;
  };
  const paint = (image, words, text) => {
    show(image);
    say(words, text);
  };
  return { element: h("figure", { class: "advbook-picture" }, canvas, caption), show, say, paint };
}

/**
 * The answer of a classifier, called `who`: its prediction in words, with more words behind, and one bar a class.
 * `paint` returns the words; for an image without a true class, its label is null.
 */
function makeAnswer(names, who = "The classifier") {
  const verdict = h("p", { class: "advbook-verdict", "aria-hidden": "true" });
  const bars = names.map((name) => {
    const fillBar = h("div", { class: "advbook-fill" });
    const value = h("span", { class: "advbook-value" });
    const meter = { role: "meter", "aria-label": name, "aria-valuemin": 0, "aria-valuemax": 100 };
    const row = h("div", { class: "advbook-bar", ...meter }, h("span", { class: "advbook-name" }, name));
    row.append(h("div", { class: "advbook-track" }, fillBar), value);
    return { row, fillBar, value };
  });
  const list = h("div", { class: "advbook-bars" }, ...bars.map((bar) => bar.row));
  const paint = (probabilities, label, more = "") => {
    const best = argmax(probabilities);
    const wrong = label !== null && best !== label;
    bars.forEach(({ row, fillBar, value }, i) => {
      fillBar.style.width = `${100 * probabilities[i]}%`;
      value.textContent = percent(probabilities[i]);
      row.setAttribute("aria-valuenow", (100 * probabilities[i]).toFixed(1));
      row.setAttribute("aria-valuetext", percent(probabilities[i]));
      row.classList.toggle("advbook-true", i === label);
      row.classList.toggle("advbook-wrong", i === best && wrong);
    });
    const sentence = `${who} says ${names[best]}, with ${percent(probabilities[best])} confidence`;
    const outcome = label === null ? "." : wrong ? `: wrong, this is ${names[label]}.` : ": right.";
    verdict.textContent = sentence + outcome + more;
    verdict.classList.toggle("advbook-wrong", wrong);
    return verdict.textContent;
  };
  return { element: h("div", { class: "advbook-answer" }, verdict, list), paint };
}

/**
 * A curve over xs, marked right or wrong at each: `line` draws it, `mark` puts the cursor to x and the ring to a
 * point, `flag` puts up a line with words at x, or takes it away (null). `names`: the words on the axes and in the
 * note, and `ticks`, about how many numbers stand below.
 */
function makePlot(xs, names) {
  let y;
  const ring = s("circle", { class: "advbook-ring", r: 7 });
  const { svg, curve, x, scale, axes, mark: place, flag } = makeChart(xs[0], xs[xs.length - 1], names, [ring]);
  const legend = h("p", { class: "advbook-note" }, names.note, h("span", { class: "advbook-right" }, "●"),
    " classifier right, ", h("span", { class: "advbook-wrong" }, "✕"), " wrong.");

  const line = (ys, isRight, highest) => {
    y = scale(highest);
    const points = ys.map((v, i) => [x(xs[i]), y(v)]);
    curve.replaceChildren(
      ...axes(highest),
      s("polyline", { class: "advbook-line", points: points.join(" ") }),
      ...points.map((point, i) => (isRight[i] ? dotMark(point) : crossMark(point))),
    );
  };
  const mark = (at, [px, py], words) => {
    fill(ring, { cx: x(px), cy: y(py) }, []);
    place(at, words);
  };
  return { element: h("div", { class: "advbook-chart" }, svg, legend), line, mark, flag };
}

/**
 * Several named curves in one chart, told apart by colour, dashes and symbol; y from 0 to `names.highest`.
 * `line` takes for each curve its `points`, of which those in `wrong` get a cross, and a `level`, a thin line across, or
 * null. `mark` puts the cursor to x and each curve's symbol to its height there, or takes it away (null); `flag` puts up
 * a line with words above it at x.
 */
function makeCurves(first, last, names, called) {
  const symbols = called.map((_, i) => symbol(i));
  const { svg, curve, x, scale, axes, mark: place, flag: raise } = makeChart(first, last, names, symbols);
  svg.classList.add("advbook-curves");
  const y = scale(names.highest);
  const legend = h("p", { class: "advbook-note" }, ...called.map((name, i) => h("span", { class: "advbook-key" }, swatch(i), name)));
  legend.append(names.note);
  const at = (points) => points.map(([px, py]) => [x(px), y(py)]);
  const level = (i, v) => {
    const end = fill(symbol(i), { transform: `translate(${x(last)} ${y(v)}) scale(0.6)` }, []);
    return [s("line", { class: `advbook-level advbook-curve-${i}`, x1: x(first), x2: x(last), y1: y(v), y2: y(v) }), end];
  };
  const line = (curves) => {
    const levels = curves.flatMap(({ level: v = null }, i) => (v === null ? [] : level(i, v)));
    const lines = curves.map(({ points }, i) => s("polyline", { class: `advbook-line advbook-curve-${i}`, points: at(points).join(" ") }));
    const crosses = curves.flatMap(({ wrong = [] }) => at(wrong).map(crossMark));
    curve.replaceChildren(...axes(names.highest), ...levels, ...lines, ...crosses);
  };
  const mark = (to, heights, words) => {
    symbols.forEach((one, i) => {
      one.setAttribute("visibility", heights[i] === null ? "hidden" : "visible");
      if (heights[i] !== null) one.setAttribute("transform", `translate(${x(to)} ${y(heights[i])})`);
    });
    place(to, words);
  };
  const flag = (to, words) => {
    const near = x(to) < PLOT.width / 2; // then the words stand on the right, clear of the axis's own
    return raise(to, words, { x: near ? Math.max(x(to), PLOT.left + 64) : x(to), y: 20, "text-anchor": near ? "start" : "end" });
  };
  return { element: h("div", { class: "advbook-chart" }, svg, legend), line, mark, flag };
}

/** The symbol of curve i: a circle, a square, a triangle, a diamond. */
const symbol = (i) => s("path", { class: `advbook-symbol advbook-curve-${i}`, d: SYMBOLS[i] });
const SYMBOLS = ["M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", "M-4.5 -4.5h9v9h-9z", "M0 -6l5.7 10h-11.4z", "M0 -6.5l6.5 6.5l-6.5 6.5l-6.5 -6.5z"];

/** A piece of curve i with its symbol, to stand before its name. */
function swatch(i) {
  const sample = s("line", { class: `advbook-line advbook-curve-${i}`, x1: 0, x2: 40, y1: 8, y2: 8 });
  const its = fill(symbol(i), { transform: "translate(20 8)" }, []);
  return s("svg", { class: "advbook-swatch", viewBox: "0 0 40 16", "aria-hidden": "true" }, sample, its);
}

/** What all charts have: scales, axes, a cursor and a flag; `above` lies over the curve. */
function makeChart(first, last, names, above) {
  const { width, height, left, right, top, bottom } = PLOT;
  const x = (v) => left + ((v - first) / (last - first)) * (width - left - right);
  const scale = (highest) => (v) => height - bottom - (v / highest) * (height - top - bottom);
  const curve = s("g");
  const flagged = s("g", { class: "advbook-flag" });
  const cursor = s("line", { class: "advbook-cursor", y1: top, y2: height - bottom });
  const shown = [curve, flagged, cursor, ...above];
  const svg = s("svg", { class: "advbook-plot", viewBox: `0 0 ${width} ${height}`, role: "img" }, ...shown);
  const axes = (highest) => {
    const [y, heights] = [scale(highest), ticks(0, highest, 5)];
    return [
      ...heights.map((v) => tick(left - 6, y(v) + 4, "end", v)),
      ...heights.map((v) => s("line", { class: "advbook-grid", x1: left, x2: width - right, y1: y(v), y2: y(v) })),
      ...ticks(first, last, names.ticks).map((v) => tick(x(v), height - bottom + 17, "middle", v)),
      s("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, names.x),
      s("text", { x: left, y: 14 }, names.y),
    ];
  };
  const mark = (at, words) => {
    fill(cursor, { x1: x(at), x2: x(at) }, []);
    svg.setAttribute("aria-label", words);
  };
  // A falling curve leaves room right of the line above, and left of it below.
  const beside = (at) =>
    at < width / 2 ? { x: at + 5, y: top + 12 } : { x: at - 5, y: height - bottom - 6, "text-anchor": "end" };
  const flag = (at, words, place = beside(x(at))) => {
    if (at === null) return flagged.replaceChildren();
    flagged.replaceChildren(s("line", { x1: x(at), x2: x(at), y1: top, y2: height - bottom }), s("text", place, words));
  };
  return { svg, curve, x, scale, axes, mark, flag };
}

const tick = (x, y, anchor, v) => s("text", { x, y, "text-anchor": anchor }, `${+v.toFixed(4)}`.replace("-", "−"));
const dotMark = ([cx, cy]) => s("circle", { class: "advbook-right", cx, cy, r: 3 });
const crossMark = ([x, y]) => s("path", { class: "advbook-wrong", d: `M${x - 3.5} ${y - 3.5}l7 7m0 -7l-7 7` });

/** About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((k) => k * power >= raw) * power;
  const from = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - from + 1 }, (_, i) => (from + i) * step);
}

function argmax(values) {
  return values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
}
