// A joint adversarial example growing, and the flow's principal directions: the flow decodes, and gives likelihoods, in
// the reader's browser. Joined behind dom.js.

const SCALE = { width: 330, height: 56, left: 16, right: 16, axis: 34, apart: 26 };
const NUMBERS = [0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500]; // that may stand at the scale

function render({ model, el }) {
  const data = reader((name) => model.get(name));
  const stops = [attackCard(model, el, data), directionsCard(model, el, data)];
  return () => stops.forEach((stop) => stop());
}

/** The first card: x, its latent part, x', and their difference. */
function attackCard(model, el, { decode, bits, classifiers, code, zeta, delta, size: count }) {
  const [names, labels, networks, quantiles, gain] = ["class_names", "labels", "networks", "quantiles", "gain"].map((name) => model.get(name));
  const [original, latent, joint, difference] = [makePicture(), makePicture(), makePicture(), makePicture()];
  const { answer, scale, told, views } = panel(names, model, [original, latent, joint, difference], ["x", "x′"]);
  let start; // the shown image before the attack: x = G(F(x)), its bits per dimension, and what is said of it

  const draw = ({ example, network, a, b }) => {
    const label = labels[example];
    const read = (image) => softmax(classifiers[network](image)).data;
    if (start?.example !== example || start.network !== network) {
      const x = decode(code(example));
      start = { example, network, x, bits: bits(x), said: names[argmax(read(x))] };
      original.paint(x, `x, of the class ${names[label]}; the classifier says ${start.said}.`, `x\nread as ${start.said}`);
    }
    const made = decode(moved(code(example), zeta(network, example), a));
    const { levels, unit: step } = delta(network, example);
    const image = along(made, levels, b * step);
    const now = read(image);
    const its = bits(image);
    const [middle, last] = [read(made), now].map((said) => names[argmax(said)]);

    latent.paint(made, `The latent part alone, G(F(x) + a zeta); the classifier says ${middle}.`, `G(F(x) + a ζ*)\nread as ${middle}`);
    joint.paint(image, `x′, with both parts; the classifier says ${last}.`, `x′\nread as ${last}`);
    difference.paint(signed(start.x, image, gain), `x′ minus x, ${gain} times: red where x′ is brighter, blue where it is darker.`, `x′ − x\n× ${gain}`);
    const sentence = answer.paint(now, label);
    const far = distances(start.x.data, image.data);
    const beyond = Math.max(a, b) > 1 + 1e-6 ? " It is beyond the attack's budget." : "";
    const fall = (its - start.bits) * Math.LN2 * count;
    const fell = `log p(x′) is ${Math.abs(Math.round(fall)).toLocaleString("en")} nats ${fall < 0 ? "above" : "below"} log p(x): x′ has ${its.toFixed(2)} bits per dimension, x ${start.bits.toFixed(2)}.`;
    told.textContent = `x′ is ${far.length.toFixed(2)} away from x (L2), at most ${far.most.toFixed(2)} in a pixel.${beyond} ${fell} x′ is ${rank(its, quantiles)}.`;
    scale.mark([start.bits, its], `Bits per dimension: x ${start.bits.toFixed(2)}, x′ ${its.toFixed(2)}; x′ is ${rank(its, quantiles)}.`);
    return `${networks[network]}. ${sentence} ${told.textContent}`;
  };
  const shown = only(model, "example", "network", "a", "b");
  return mount(model, el, { name: "A joint adversarial example", views, note: model.get("note"), draw, shown });
}

/** The second card: the mean code's image, moved along a direction. */
function directionsCard(model, el, { decode, bits, classifiers, mean, direction }) {
  const [names, networks, quantiles] = ["class_names", "networks", "quantiles"].map((name) => model.get(name));
  const [middle, picture] = [makePicture(), makePicture()];
  const { answer, scale, told, views } = panel(names, model, [middle, picture], ["mean", "moved"]);
  const start = decode(mean);
  const known = bits(start);
  middle.paint(start, "The image of the mean code, G(m).", "G(m)\nthe mean code");

  const draw = ({ network, direction: k, t }) => {
    const image = decode(moved(mean, { levels: direction(k), unit: 1 }, t));
    const now = softmax(classifiers[network](image)).data;
    const its = bits(image);
    const sentence = answer.paint(now, null);
    const there = `${t.toFixed(1).replace("-", "−")} standard deviations along direction ${k + 1}`;
    told.textContent = `The image ${there} has ${its.toFixed(2)} bits per dimension, that of the mean code ${known.toFixed(2)}. It is ${rank(its, quantiles)}.`;
    picture.paint(image, `The image ${there}. ${sentence}`, `G(m + t s v)\nread as ${names[argmax(now)]}`);
    scale.mark([known, its], `Bits per dimension: mean code ${known.toFixed(2)}, moved ${its.toFixed(2)}; it is ${rank(its, quantiles)}.`);
    return `${networks[network]}. ${sentence} ${told.textContent}`;
  };
  const shown = only(model, "network", "direction", "t");
  return mount(model, el, { name: "Principal directions of the codes", views, note: model.get("directions_note"), draw, shown });
}

const only = (model, ...names) => model.get("controls").filter(({ name }) => names.includes(name));

/** What both cards have: pictures in a row, the classifier's answer, the scale of likelihoods and a sentence. */
function panel(names, model, pictures, called) {
  const answer = makeAnswer(names);
  const scale = makeScale(model.get("limits"), model.get("quantiles"), called);
  const told = h("p", { class: "advbook-likelihood", "aria-hidden": "true" });
  const row = h("div", { class: "advbook-pictures advbook-row advbook-stay" }, ...pictures.map(({ element }) => element));
  const side = h("div", { class: "advbook-side" }, scale.element, told);
  return { answer, scale, told, views: [h("div", { class: "advbook-views" }, row, answer.element, side)] };
}

/**
 * Bits per dimension on an axis that is wide where test images are, with their quantiles; `mark` puts two pointers there,
 * a ring and a wedge.
 */
function makeScale([low, high], [rare, median, usual], called) {
  const { width, height, left, right, axis, apart } = SCALE;
  const place = (v) => Math.asinh((2 * (v - median)) / (usual - rare));
  const x = (v) => left + clamp((place(v) - place(low)) / (place(high) - place(low))) * (width - left - right);
  const within = [...NUMBERS.map((v) => -v).reverse(), ...NUMBERS.slice(1)].filter((v) => v >= low && v <= high);
  const numbers = within.reduce((kept, v) => (kept.length && x(v) - x(kept[kept.length - 1]) < apart ? kept : [...kept, v]), []);
  const ring = s("circle", { class: "advbook-ring", cy: axis - 6, r: 6 });
  const wedge = s("path", { class: "advbook-wedge", d: `M0 ${axis}l-7 -16h14z` });
  const shown = [
    s("rect", { class: "advbook-band", x: x(rare), y: axis - 12, width: x(usual) - x(rare), height: 12 }),
    s("line", { class: "advbook-median", x1: x(median), x2: x(median), y1: axis - 12, y2: axis }),
    s("line", { class: "advbook-axis", x1: left, x2: width - right, y1: axis, y2: axis }),
    ...numbers.map((v) => tick(x(v), axis + 16, "middle", v)),
    s("text", { x: left, y: 12 }, "bits per dimension"),
    s("text", { x: width - right, y: 12, "text-anchor": "end" }, "less likely →"),
  ];
  const svg = s("svg", { class: "advbook-plot", viewBox: `0 0 ${width} ${height}`, role: "img" }, ...shown, ring, wedge);
  const legend = h("p", { class: "advbook-note" }, `○ ${called[0]}, ▼ ${called[1]}; band: the middle 90 % of test images, with their median.`);
  const mark = ([first, second], words) => {
    fill(ring, { cx: x(first) }, []);
    fill(wedge, { transform: `translate(${x(second)} 0)` }, []);
    svg.setAttribute("aria-label", words);
  };
  return { element: h("div", { class: "advbook-scale" }, svg, legend), mark };
}

/** How these bits per dimension compare with those that 5, 50 and 95 % of the test images keep below. */
export function rank(bits, [rare, median, usual]) {
  if (bits > usual) return "less likely than 95 % of the test images";
  if (bits < rare) return "likelier than 95 % of the test images";
  return `${bits > median ? "less likely" : "likelier"} than half of the test images`;
}

/**
 * The figure's packed numbers as functions: of an image, its code; of a network and an image, the steps zeta and delta as
 * whole levels, with the unit that they count; the mean code, and the directions, already times s.
 */
export function reader(get) {
  const shape = get("image_shape");
  const length = size(shape);
  const examples = get("labels").length;
  const numbers = (Numbers, name) => slices(Numbers, get(name), [length]);
  const [codes, zetas, deltas, directions] = [[Float32Array, "codes"], [Int8Array, "zetas"], [Int8Array, "deltas"], [Uint16Array, "directions"]].map((pair) => numbers(...pair));
  const decoder = load(get("decoder"), get("flow_weights"));
  const encoder = load(get("encoder"), get("flow_weights"));
  return {
    size: length,
    decode: (z) => decoder({ shape: [length], data: z }),
    bits: (image) => encoder(image).data[0],
    classifiers: get("classifiers").map((layers) => load(layers, get("classifiers_weights"))),
    code: (example) => codes(example).data,
    zeta: (network, example) => ({ levels: zetas(network * examples + example).data, unit: get("eta") / 127 }),
    delta: (network, example) => ({ levels: { shape, data: deltas(network * examples + example).data }, unit: get("eps") / 127 }),
    mean: halves(numbers(Uint16Array, "mean")(0).data),
    direction: (k) => halves(directions(k).data),
  };
}

/** The code moved by t times a step. */
export function moved(code, { levels, unit }, t) {
  return code.map((v, i) => v + t * unit * levels[i]);
}

/** after - before, times `gain`, as a colour image: white for 0, red above, blue below; the mean over channels. */
export function signed({ data: before, shape: [channels, height, width] }, { data: after }, gain) {
  const area = height * width;
  const out = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += after[c * area + i] - before[c * area + i];
    const v = Math.min(1, Math.max(-1, (gain * sum) / channels));
    const end = v > 0 ? [0.7, 0.09, 0.17] : [0.13, 0.4, 0.67];
    for (let k = 0; k < 3; k++) out[k * area + i] = 1 - Math.abs(v) * (1 - end[k]);
  }
  return { shape: [3, height, width], data: out };
}

/** How far two images are from one another: L2, and the largest difference. */
function distances(a, b) {
  const apart = a.map((v, i) => Math.abs(v - b[i]));
  return { length: Math.sqrt(apart.reduce((sum, v) => sum + v * v, 0)), most: apart.reduce((most, v) => Math.max(most, v), 0) };
}

export default { render };
