// The on-manifold attack: theta + zeta -> decoder -> picture -> classifier, by hand or along the attack's own path.
// Joined behind dom.js.

function render({ model, el }) {
  const decode = load(model.get("decoder"), model.get("decoder_weights"));
  const classify = load(model.get("classifier"), model.get("classifier_weights"));
  const [names, labels, eta] = ["class_names", "labels", "eta"].map((name) => model.get(name));
  const box = { low: model.get("low"), high: model.get("high") };
  const controls = model.get("controls");
  const latents = controls.filter(({ name }) => name.startsWith("zeta_"));
  const { max: last } = controls.find(({ name }) => name === "step");
  const steps = Array.from({ length: last + 1 }, (_, step) => step);
  const theta = slices(Float32Array, model.get("theta"), [latents.length]);
  const path = slices(Float32Array, model.get("path"), [latents.length]);
  const original = makePicture();
  const picture = makePicture();
  const answer = makeAnswer(names);
  const verdict = h("p", { class: "advbook-move", "aria-hidden": "true" });
  const plot = makePlot(steps, {
    x: "step of the attack's path",
    y: "confidence in the true class, %",
    ticks: Math.min(6, last),
    note: "The line is the attack's path, the ring what you see. ",
  });
  const zetaAt = (example, step) => path(example * steps.length + step).data;
  const decoded = (example, zeta) => decode(code(theta(example).data, zeta, box, example));
  const probabilities = (image) => softmax(classify(image)).data;
  let start; // the shown example before the move: its number and the classifier's answer
  let first; // the first step of its path at which the classifier errs, or null

  const showExample = (example) => {
    if (start?.example === example) return;
    const image = decoded(example, latents.map(() => 0));
    const label = labels[example];
    start = { example, best: argmax(probabilities(image)) };
    const said = steps.map((step) => probabilities(decoded(example, zetaAt(example, step))));
    const right = said.map((values) => argmax(values) === label);
    first = right.includes(false) ? right.indexOf(false) : null;
    const says = `the classifier says ${names[start.best]}`;
    original.paint(image, `The original image, a letter ${names[label]}; ${says}.`, `original, dec(θ); ${says}`);
    plot.line(said.map((values) => 100 * values[label]), right, 100);
    plot.flag(first, `first error: step ${first}`);
  };
  const draw = ({ example, step, ...moves }) => {
    showExample(example);
    const zeta = Object.values(moves);
    const label = labels[example];
    const image = decoded(example, zeta);
    const now = probabilities(image);
    const fooled = argmax(now) !== label;
    const move = moveSentence(zeta.map((v, i) => Math.abs(v) / eta[i]), fooled, start.best !== label);
    verdict.textContent = move;
    verdict.classList.toggle("advbook-wrong", fooled);
    const sentence = answer.paint(now, label);
    picture.paint(image, `The image moved by zeta. ${move} ${sentence}`, "moved, dec(θ + ζ)");
    const there = `The slider of the path is at step ${step} of ${last}.`;
    const error = first === null ? "The classifier never errs on it." : `The classifier errs on it first at step ${first}.`;
    plot.mark(step, [step, 100 * now[label]], `Confidence in the true class along the attack's path. ${there} ${error}`);
    return `${move} ${sentence} ${there}`;
  };
  const moveSentence = (shares, fooled, wasWrong) => {
    const most = argmax(shares);
    const outcome = wasWrong ? "The classifier errs even without a move." : `The classifier is ${fooled ? "" : "not "}fooled.`;
    if (shares[most] < 5e-4) return `No move. ${outcome}`;
    return `The largest move, ${latents[most].label}, takes ${percent(shares[most])} of its budget η. ${outcome}`;
  };
  const zetas = (values) => Object.fromEntries(latents.map(({ name }, i) => [name, values[i]]));
  const follow = (name) => {
    if (name === "example") return { step: 0, ...zetas(latents.map(() => 0)) };
    return name === "step" ? zetas(zetaAt(model.get("example"), model.get("step"))) : {};
  };
  const views = [h("div", { class: "advbook-views" }, original.element, picture.element, answer.element), verdict];
  const note = model.get("note");
  return mount(model, el, { name: "On-manifold attack", views, below: [plot.element], note, draw, follow });
}

/** The decoder's input for an example moved by zeta: theta + zeta clipped into the box, the prototype's two numbers. */
export function code(theta, zeta, { low, high }, example) {
  const moved = Array.from(theta, (v, i) => Math.min(high[i], Math.max(low[i], v + zeta[i])));
  return { shape: [moved.length + 2], data: [...moved, example, 0] };
}

export default { render };
