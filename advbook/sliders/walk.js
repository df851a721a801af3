// The walk off the manifold: x + t delta classified live, distance and projection as computed before. Joined behind
// dom.js.

const PLOT = { width: 440, height: 170, left: 44, right: 12, top: 26, bottom: 40 };

function render({ model, el }) {
  const classify = load(model.get("classifier"), model.get("classifier_weights"));
  const names = model.get("class_names");
  const labels = model.get("labels");
  const ts = model.get("ts");
  const shape = model.get("image_shape");
  const images = slices(Float32Array, model.get("images"), shape);
  const deltas = slices(Float32Array, model.get("deltas"), shape);
  const projections = slices(Uint8Array, model.get("projections"), shape);
  const at = makePicture();
  const projection = makePicture();
  const answer = makeAnswer(names);
  const plot = makePlot(ts);
  const moved = (example, t) => along(images(example), deltas(example), t);
  const probabilities = (image) => softmax(classify(image)).data;
  let plotted = -1;

  const plotExample = (example) => {
    if (example === plotted) return;
    const right = ts.map((t) => argmax(probabilities(moved(example, t))) === labels[example]);
    plot.line(model.get("distances")[example], right);
    plotted = example;
  };
  const draw = ({ example, t }) => {
    plotExample(example);
    const nearest = argmax(ts.map((other) => -Math.abs(other - t)));
    const label = labels[example];
    const distance = model.get("distances")[example][nearest].toFixed(2);
    const image = moved(example, t);
    const sentence = answer.paint(probabilities(image), label);
    const there = `t = ${t.toFixed(2)}`;
    const before = `t = ${ts[nearest].toFixed(2)}`;
    at.paint(image, `x + t delta at ${there}. ${sentence}`, `x + t δ, live, ${there}`);
    const { data } = projections(example * ts.length + nearest);
    const bytes = { shape, data: Float32Array.from(data, (v) => v / 255) };
    projection.paint(bytes, `Projection onto the manifold, precomputed at ${before}.`, `projection, precomputed at ${before}`);
    plot.mark(t, nearest, `Distance to the manifold over t, precomputed: ${distance} at ${before}.`);
    return `At ${there}: ${sentence} Precomputed distance to the manifold: ${distance}.`;
  };
  const views = [
    h("div", { class: "advbook-views" }, at.element, projection.element, answer.element),
    plot.element,
  ];
  return mount(model, el, { name: "Walk off the manifold", views, note: model.get("note"), draw });
}

/** Equal tensors behind one another: (array type, bytes, shape of one) -> (index -> tensor). */
function slices(Numbers, bytes, shape) {
  const numbers = new Numbers(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  const length = size(shape);
  return (i) => ({ shape, data: numbers.subarray(i * length, (i + 1) * length) });
}

/** The distance over t: `line` draws the curve of one example, `mark` the place of the slider. */
function makePlot(ts) {
  const { width, height, left, right, top, bottom } = PLOT;
  const [first, last] = [ts[0], ts[ts.length - 1]];
  const x = (t) => left + ((t - first) / (last - first)) * (width - left - right);
  let points = [];
  const curve = s("g");
  const cursor = s("line", { class: "advbook-cursor", y1: top, y2: height - bottom });
  const ring = s("circle", { class: "advbook-ring", r: 7 });
  const svg = s("svg", { class: "advbook-plot", viewBox: `0 0 ${width} ${height}`, role: "img" }, curve, cursor, ring);
  const legend = h("p", { class: "advbook-note" }, "Distance precomputed at the marks: ", h("span", { class: "advbook-right" }, "●"),
    " classifier right, ", h("span", { class: "advbook-wrong" }, "✕"), " wrong.");

  const line = (distances, isRight) => {
    const highest = Math.max(...distances, 1e-6) * 1.08;
    const y = (distance) => height - bottom - (distance / highest) * (height - top - bottom);
    points = distances.map((distance, i) => [x(ts[i]), y(distance)]);
    curve.replaceChildren(
      ...ticks(0, highest, 5).map((v) => tick(left - 6, y(v) + 4, "end", v)),
      ...ticks(0, highest, 5).map((v) => s("line", { class: "advbook-grid", x1: left, x2: width - right, y1: y(v), y2: y(v) })),
      ...ticks(first, last, 6).map((v) => tick(x(v), height - bottom + 17, "middle", v)),
      s("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "t"),
      s("text", { x: left, y: 14 }, "distance to the manifold"),
      s("polyline", { class: "advbook-line", points: points.join(" ") }),
      ...points.map((point, i) => (isRight[i] ? dotMark(point) : crossMark(point))),
    );
  };
  const mark = (t, nearest, words) => {
    fill(cursor, { x1: x(t), x2: x(t) }, []);
    fill(ring, { cx: points[nearest][0], cy: points[nearest][1] }, []);
    svg.setAttribute("aria-label", words);
  };
  return { element: h("div", { class: "advbook-distance" }, svg, legend), line, mark };
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

export default { render };
