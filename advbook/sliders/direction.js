// The step along an attack: x + t delta for several networks, each with its own delta. Joined behind dom.js.

const CURVE = 40; // steps of a curve from t = 0 to the slider's end
const SPARE = 5; // ms of a frame for curves that are not complete yet

function render({ model, el }) {
  const [names, labels, taus, networks, shape] = ["class_names", "labels", "taus", "networks", "image_shape"].map((name) => model.get(name));
  const classifiers = model.get("classifiers").map((layers) => load(layers, model.get("classifiers_weights")));
  const images = slices(Float32Array, model.get("images"), shape);
  const deltas = slices(Float32Array, model.get("deltas"), shape);
  const { max: last } = model.get("controls").find(({ name }) => name === "t");
  const ts = Array.from({ length: CURVE + 1 }, (_, i) => (i / CURVE) * last);
  const panels = networks.map((name, n) => makePanel(name, n, names));
  const plot = makeCurves(0, last, {
    x: "t",
    y: "confidence in the predicted class, %",
    ticks: 8,
    highest: 100,
    note: h("span", {}, "thin lines: each network's τ; ", h("span", { class: "advbook-wrong" }, "✕"), " predicted class wrong"),
  }, networks);
  const moved = (n, example, t) => along(images(example), deltas(n * labels.length + example), t);
  const probabilities = (n, image) => softmax(classifiers[n](image)).data;
  const curves = labels.map(() => networks.map(() => [])); // for each example and network, [confidence, right] at each t
  let drawn = ""; // the example in the chart, and how far its curves go

  /** Computes curves for a few milliseconds; whether they are complete. */
  const compute = (example) => {
    const until = performance.now() + SPARE;
    const known = curves[example];
    for (let i = known[0].length; i < ts.length && performance.now() < until; i++) {
      known.forEach((its, n) => {
        const said = probabilities(n, moved(n, example, ts[i]));
        its.push([Math.max(...said), argmax(said) === labels[example]]);
      });
    }
    return known[0].length === ts.length;
  };
  const drawCurves = (example) => {
    const known = curves[example];
    if (drawn === `${example} ${known[0].length}`) return;
    drawn = `${example} ${known[0].length}`;
    plot.line(known.map((its, n) => {
      const points = its.map(([confidence], i) => [ts[i], 100 * confidence]);
      return { points, wrong: points.filter((_, i) => i % 2 === 0 && !its[i][1]), level: 100 * taus[n] };
    }));
  };
  const draw = ({ example, t }, again) => {
    if (!compute(example)) again();
    drawCurves(example);
    const label = labels[example];
    const there = `t = ${t.toFixed(2)}`;
    const tops = [];
    const sentences = panels.map((panel, n) => {
      const image = moved(n, example, t);
      const said = probabilities(n, image);
      tops.push(100 * Math.max(...said));
      return panel.paint(image, said, label, taus[n], there);
    });
    plot.mark(t, tops, `Confidence in the predicted class along each network's own attack, at ${there}: ` +
      `${networks.map((name, n) => `${name} ${tops[n].toFixed(1)} %, τ ${percent(taus[n])}`).join("; ")}.`);
    return `At ${there}. ${sentences.join(" ")}`;
  };
  const views = [h("div", { class: `advbook-panels advbook-panels-${networks.length}` }, ...panels.map(({ element }) => element))];
  const note = model.get("note");
  return mount(model, el, { name: "The step along an attack", views, below: [plot.element], note, draw });
}

/** One network's picture, answer, and whether it accepts. */
function makePanel(name, n, names) {
  const picture = makePicture();
  const answer = makeAnswer(names, "It");
  const head = h("p", { class: "advbook-network" }, swatch(n), name);
  const element = h("section", { class: "advbook-panel", "aria-label": name }, head, picture.element, answer.element);
  const paint = (image, said, label, tau, there) => {
    const accepted = Math.max(...said) >= tau;
    const sentence = answer.paint(said, label, ` ${accepted ? "Accepted" : "Rejected"} at τ = ${tau.toFixed(3)}.`);
    element.classList.toggle("advbook-rejected", !accepted);
    picture.paint(image, `${name}: x + t delta at ${there}. ${sentence}`, `x + t δ\n${accepted ? "accepted" : "⊘ rejected"}`);
    return `${name}: ${sentence}`;
  };
  return { element, paint };
}

export default { render };
