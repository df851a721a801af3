// The walk off the manifold: x + t delta classified live, distance and projection as computed before. Joined behind
// dom.js.

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
  const plot = makePlot(ts, { x: "t", y: "distance to the manifold", ticks: 6, note: "Distance precomputed at the marks: " });
  const moved = (example, t) => along(images(example), deltas(example), t);
  const probabilities = (image) => softmax(classify(image)).data;
  let plotted = -1;

  const plotExample = (example) => {
    if (example === plotted) return;
    const right = ts.map((t) => argmax(probabilities(moved(example, t))) === labels[example]);
    const distances = model.get("distances")[example];
    plot.line(distances, right, Math.max(...distances, 1e-6) * 1.08);
    plotted = example;
  };
  const draw = ({ example, t }) => {
    plotExample(example);
    const nearest = argmax(ts.map((other) => -Math.abs(other - t)));
    const label = labels[example];
    const distance = model.get("distances")[example][nearest];
    const shown = distance.toFixed(2);
    const image = moved(example, t);
    const sentence = answer.paint(probabilities(image), label);
    const there = `t = ${t.toFixed(2)}`;
    const before = `t = ${ts[nearest].toFixed(2)}`;
    at.paint(image, `x + t delta at ${there}. ${sentence}`, `x + t δ, live, ${there}`);
    const { data } = projections(example * ts.length + nearest);
    const bytes = { shape, data: Float32Array.from(data, (v) => v / 255) };
    projection.paint(bytes, `Projection onto the manifold, precomputed at ${before}.`, `projection, precomputed at ${before}`);
    plot.mark(t, [ts[nearest], distance], `Distance to the manifold over t, precomputed: ${shown} at ${before}.`);
    return `At ${there}: ${sentence} Precomputed distance to the manifold: ${shown}.`;
  };
  const views = [
    h("div", { class: "advbook-views" }, at.element, projection.element, answer.element),
    plot.element,
  ];
  return mount(model, el, { name: "Walk off the manifold", views, note: model.get("note"), draw });
}

export default { render };
