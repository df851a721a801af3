// Learned manifolds: (class, z) -> decoder -> picture -> classifier, by hand or along an attack's path, beside the test
// image and the nearest training images. Joined behind dom.js.

const NEAREST = 3; // training images shown

function render({ model, el }) {
  const [names, shape, eta] = ["class_names", "image_shape", "eta"].map((name) => model.get(name));
  const decoders = model.get("decoders").map((layers) => load(layers, model.get("decoders_weights")));
  const classify = load(model.get("classifier"), model.get("classifier_weights"));
  const controls = model.get("controls");
  const latents = controls.filter(({ name }) => name.startsWith("z_"));
  const path = controls.find(({ name }) => name === "step"); // undefined where there is no attack
  const steps = Array.from({ length: path ? path.max + 1 : 0 }, (_, step) => step);
  const images = slices(Uint8Array, model.get("images"), shape);
  const codes = slices(Float32Array, model.get("codes"), [latents.length]);
  const moves = slices(Float32Array, model.get("paths"), [latents.length]);
  const bank = slices(Uint8Array, model.get("bank"), [model.get("bank").byteLength])(0).data;
  const examples = model.get("images").byteLength / size(shape) / names.length;
  const banked = bank.length / size(shape) / names.length; // images of a class

  const original = makePicture();
  const decoded = makePicture();
  const answer = makeAnswer(names);
  const budget = h("p", { class: "advbook-move", "aria-hidden": "true" });
  const apart = h("p", { "aria-hidden": "true" });
  const thumbs = Array.from({ length: NEAREST }, makePicture);
  thumbs.forEach(({ element }) => element.classList.add("advbook-thumb"));
  const strip = h("div", { class: "advbook-strip", role: "group", "aria-label": "Nearest training images" }, ...thumbs.map(({ element }) => element));
  const legend = `The ${NEAREST} nearest of ${names.length * banked} training images, with class and distance (L2) from the decoded image:`;
  const plot = path && makePlot(steps, {
    x: "step of the attack's path",
    y: "confidence in the true class, %",
    ticks: Math.min(6, path.max),
    note: "The line is the attack's path, the ring what you see. ",
  });

  const place = (label, example) => label * examples + example;
  // One decoder may serve all classes. A typed array, as all tensors behind it: of mixed kinds, the layers would be slow.
  const decode = (label, z) => decoders[label % decoders.length]({ shape: [z.length], data: Float32Array.from(z) });
  const probabilities = (image) => softmax(classify(image)).data;
  const onPath = (at, step) => moved(codes(at).data, moves(at * steps.length + step).data, latents[0].max);
  const curves = new Map(); // for each image, the classifier's answers at the first steps of its path
  let drawn = {}; // the place of the image in the chart, and how many steps its curve has
  let start; // the shown test image: its place, and how far its reconstruction is from it

  const showPath = (label, at, step, now, again) => {
    const known = curves.get(at) ?? curves.set(at, []).get(at);
    // One step a frame, and none in an image's first, which has two images more to see to: so frames stay short.
    if (drawn.at === at && known.length < steps.length) known.push(probabilities(decode(label, onPath(at, known.length))));
    if (known.length < steps.length) again();
    const right = known.map((values) => argmax(values) === label);
    const first = right.includes(false) ? right.indexOf(false) : null;
    if (drawn.at !== at || drawn.count !== known.length) {
      drawn = { at, count: known.length };
      plot.line(known.map((values) => 100 * values[label]), right, 100);
      plot.flag(first, `first error: step ${first}`);
    }
    const there = `The slider of the path is at step ${step} of ${path.max}.`;
    const error = first === null ? (known.length < steps.length ? "" : "The classifier never errs on it.") : `The classifier errs on it first at step ${first}.`;
    plot.mark(step, [step, 100 * now[label]], `Confidence in the true class along the attack's path. ${there} ${error}`);
    return there;
  };
  const showOriginal = (label, at) => {
    if (start?.at === at) return;
    const x = unit(images(at));
    const read = names[argmax(probabilities(x))];
    start = { at, x, apart: distance(x.data, decode(label, codes(at).data).data) };
    original.paint(x, `The test image, of the class ${names[label]}; the classifier says ${read}.`, `test image, read as ${read}`);
  };
  const showNearest = (label, image) => {
    const found = nearest(bank, image.data, NEAREST).map(({ index, distance }) => ({ index, its: Math.floor(index / banked), far: distance.toFixed(2) }));
    found.forEach(({ index, its, far }, i) => {
      const data = bank.subarray(index * image.data.length, (index + 1) * image.data.length);
      thumbs[i].paint(unit({ shape, data }), `Training image of the class ${names[its]}, at distance ${far}.`, `${names[its]}\n${far}`);
      thumbs[i].element.classList.toggle("advbook-wrong", its !== label);
    });
    return `Nearest training images: ${found.map(({ its, far }) => `${names[its]} at ${far}`).join(", ")}.`;
  };
  const budgetSentence = (code, z) => {
    const far = z.map((v, i) => Math.abs(v - code[i]));
    const most = argmax(far);
    const beyond = far[most] > eta + 1e-5; // so much is rounding
    budget.classList.toggle("advbook-wrong", beyond);
    if (far[most] < 1e-5) return "No move: z is the code of the test image.";
    return `The largest move from the code, ${latents[most].label}, is ${far[most].toFixed(2)}: ${beyond ? "beyond" : "within"} the budget η = ${+eta.toFixed(4)}.`;
  };
  const draw = ({ label, example, step, ...zs }, again) => {
    const at = place(label, example);
    const z = Object.values(zs);
    showOriginal(label, at);
    const image = decode(label, z);
    const now = probabilities(image);
    const sentence = answer.paint(now, label);
    budget.textContent = budgetSentence(codes(at).data, z);
    apart.textContent = `The decoded image is ${distance(start.x.data, image.data).toFixed(2)} from the test image (L2 over the pixels); at the code it is ${start.apart.toFixed(2)}.`;
    decoded.paint(image, `The image decoded from z. ${sentence}`, `decoded, read as ${names[argmax(now)]}`);
    const words = [budget.textContent, sentence, apart.textContent, showNearest(label, image)];
    if (path) words.push(showPath(label, at, step, now, again));
    return words.join(" ");
  };
  const toward = (z) => Object.fromEntries(latents.map(({ name }, i) => [name, z[i]]));
  const follow = (name) => {
    const at = place(model.get("label"), model.get("example"));
    if (name === "step") return toward(onPath(at, model.get("step")));
    return name === "label" || name === "example" ? { ...(path && { step: 0 }), ...toward(codes(at).data) } : {};
  };
  const pictures = h("div", { class: "advbook-pictures advbook-stay" }, original.element, decoded.element);
  const near = h("div", { class: "advbook-near" }, h("p", { class: "advbook-note" }, legend), strip);
  const views = [h("div", { class: "advbook-views" }, pictures, answer.element), budget, apart, near];
  return mount(model, el, { name: "Learned manifolds", views, below: plot ? [plot.element] : [], note: model.get("note"), draw, follow });
}

/** The code moved by zeta and clipped to [-reach, reach]. */
export function moved(code, zeta, reach) {
  return code.map((v, i) => Math.min(reach, Math.max(-reach, v + zeta[i])));
}

/** The `count` images of a bank (bytes, behind one another) that are nearest to an image in L2, nearest first. */
export function nearest(bank, image, count) {
  const found = [];
  const bytes = image.map((v) => 255 * v);
  for (let index = 0; index * bytes.length < bank.length; index++) {
    let sum = 0;
    for (let i = 0, j = index * bytes.length; i < bytes.length; i++, j++) {
      const gap = bytes[i] - bank[j];
      sum += gap * gap;
    }
    found.push({ index, distance: Math.sqrt(sum) / 255 });
  }
  return found.sort((a, b) => a.distance - b.distance).slice(0, count);
}

/** L2. */
export function distance(a, b) {
  return Math.sqrt(a.reduce((sum, v, i) => sum + (v - b[i]) ** 2, 0));
}

export default { render };
