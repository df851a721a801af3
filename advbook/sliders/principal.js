// Principal directions: (class, zeta) -> image -> classifier, all in the reader's browser. Joined behind dom.js.

function render({ model, el }) {
  const classes = reader(...["image_shape", "means", "directions", "steps"].map((name) => model.get(name)));
  const classify = load(model.get("classifier"), model.get("classifier_weights"));
  const names = model.get("class_names");
  const [mean, moved] = [makePicture(), makePicture()];
  const answer = makeAnswer(names);
  const lengths = h("p", { class: "advbook-move", "aria-hidden": "true" });

  const draw = ({ label, ...zetas }) => {
    const { middle, image, length, clipped } = principal(classes(label), Object.values(zetas));
    const probabilities = softmax(classify(image)).data;
    const verdict = answer.paint(probabilities, label);
    lengths.textContent = length ? `The move is ${length.toFixed(2)} long in pixels (L2), ${clipped.toFixed(2)} once clipped to [0, 1].` : "No move: the mean of the class.";
    mean.paint(middle, `The mean image of the class ${names[label]}.`, `the mean of ${names[label]}`);
    moved.paint(image, `The image moved from the mean. ${verdict}`, `moved, read as ${names[argmax(probabilities)]}`);
    return `${lengths.textContent} ${verdict}`;
  };
  const pictures = h("div", { class: "advbook-pictures advbook-stay" }, mean.element, moved.element);
  const views = [h("div", { class: "advbook-views" }, pictures, answer.element), lengths];
  return mount(model, el, { name: "Principal directions", views, note: model.get("note"), draw });
}

/** The packed classes: label -> its mean, its directions in steps, and the size of a step of each. */
export function reader(shape, means, directions, steps) {
  const mean = slices(Uint16Array, means, shape);
  const count = (directions.byteLength / means.byteLength) | 0; // both have 2 bytes a pixel
  const direction = slices(Int16Array, directions, [count, ...shape]);
  const step = slices(Float32Array, steps, [count]);
  return (label) => ({ mean: mean(label), directions: direction(label).data, steps: step(label).data });
}

/**
 * clip(mean + sum_i zeta_i step_i direction_i), with the mean itself and the L2 length of the move, before and after
 * clipping.
 */
export function principal({ mean, directions, steps }, zeta) {
  const { shape, data } = mean;
  const middle = Float32Array.from(data, (v) => v / 65535);
  const move = new Float64Array(data.length);
  zeta.forEach((z, i) => {
    const weight = z * steps[i];
    if (weight) for (let j = 0; j < move.length; j++) move[j] += weight * directions[i * move.length + j];
  });
  const image = middle.map((v, j) => clamp(v + move[j]));
  const norm = (values) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));
  return { middle: { shape, data: middle }, image: { shape, data: image }, length: norm(move), clipped: norm(image.map((v, j) => v - middle[j])) };
}

export default { render };
