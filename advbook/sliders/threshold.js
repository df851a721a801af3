// The threshold tau: what is accepted, and the errors that are left, from confidences. Joined behind dom.js.

const STOPS = 1000; // of the slider, and of the curves over tau

function render({ model, el }) {
  const [networks, threats, tau99, shape] = ["networks", "threats", "tau99", "image_shape"].map((name) => model.get(name));
  const data = reader(model, networks.length, threats.length);
  const { count } = data;
  const names = model.get("controls").map(({ name }) => name);
  const numbers = makeNumbers();
  const changes = h("p", { class: "advbook-changes", "aria-hidden": "true" });
  const pairs = Array.from({ length: count }, (_, i) => [makeThumb(`Image ${i + 1}, clean`), makeThumb(`Image ${i + 1}, attacked`)]);
  const columns = pairs.map((pair) => h("div", { class: "advbook-pair" }, ...pair.map(({ element }) => element)));
  const strip = h("div", { class: "advbook-strip", role: "group", "aria-label": "Examples" }, ...columns);
  const plot = makeCurves(0, 1, { x: "threshold τ", y: "error, %", ticks: 10, highest: 100, note: "a line ends where nothing is accepted" }, [
    "Err(τ), clean images",
    "RErr(τ), clean or attacked",
  ]);
  const clean = slices(Uint8Array, model.get("clean_images"), shape);
  const attacked = slices(Uint8Array, model.get("attacked_images"), shape);
  let chosen = ""; // the network and threat shown
  let arrays;
  let sides = []; // of each shown image: whether it was accepted in the last frame
  let before = []; // and before the move that goes on
  let seen = 0; // when the last frame was drawn

  const choose = (network, threat) => {
    if (chosen === `${network} ${threat}`) return;
    chosen = `${network} ${threat}`;
    arrays = data.of(network, threat);
    sides = [];
    const first = (network * threats.length + threat) * count;
    pairs.forEach(([above, below], i) => {
      above.show(clean(i));
      below.show(attacked(first + i));
    });
    const stops = Array.from({ length: STOPS + 1 }, (_, i) => i / STOPS);
    const known = stops.map((tau) => rates(arrays, tau));
    const curve = (name) => stops.flatMap((tau, i) => (known[i][name] === null ? [] : [[tau, 100 * known[i][name]]]));
    plot.line([{ points: curve("error") }, { points: curve("robustError") }]);
    plot.flag(tau99[network], "τ at 99 % TPR");
  };
  /** Says for each shown image where it stands now; returns those that changed sides in this move, by name. */
  const sort = (tau) => {
    const { cleanConfidence, cleanCorrect, attackedConfidence, attackedWrong } = arrays;
    const now = pairs.flatMap((_, i) => [accepts(cleanConfidence[i], tau), accepts(attackedConfidence[i], tau)]);
    // A move goes on until the figure has been at rest for a while: a drag is one move.
    if (!sides.length) before = now;
    else if (performance.now() - seen > QUIET) before = sides;
    [sides, seen] = [now, performance.now()];
    return pairs.flatMap(([above, below], i) => [
      ...above.say(cleanConfidence[i], Boolean(cleanCorrect[i]), now[2 * i], before[2 * i] !== now[2 * i]),
      ...below.say(attackedConfidence[i], !attackedWrong[i], now[2 * i + 1], before[2 * i + 1] !== now[2 * i + 1]),
    ]);
  };
  const draw = ({ network, threat, tau }) => {
    choose(network, threat);
    const now = rates(arrays, tau);
    const there = `τ = ${tau.toFixed(3)}`;
    const sentence = numbers.paint(now);
    const crossed = sort(tau);
    changes.textContent = crossed.length ? `${crossed.length} of these images changed sides in the last move.` : "";
    const spoken = crossed.length ? ` Changed sides: ${crossed.join("; ")}.` : "";
    const heights = [now.error, now.robustError].map((v) => (v === null ? null : 100 * v));
    plot.mark(tau, heights, `Error and robust error over the threshold for ${networks[network]} under ${threats[threat]}; at ${there}: ${sentence}`);
    return `${networks[network]}, ${threats[threat]}, ${there}. ${sentence}${spoken}`;
  };
  const follow = (name) => (name === names[0] ? { tau: tau99[model.get(name)] } : {});
  const legend = h("p", { class: "advbook-note" }, "Above the clean image, below it the attacked one. ",
    h("span", { class: "advbook-right" }, "✓"), " class right, ", h("span", { class: "advbook-wrong" }, "✕"), " wrong; faded and dashed: ⊘ rejected. ");
  const below = [legend, strip, changes, plot.element];
  return mount(model, el, { name: "Threshold", views: [numbers.element], below, note: model.get("note"), draw, follow });
}

/** The packed arrays by network and threat, and `count`, how many images are shown. */
function reader(model, networks, threats) {
  const share = (Numbers, name, parts) => slices(Numbers, model.get(name), [model.get(name).byteLength / Numbers.BYTES_PER_ELEMENT / parts]);
  const cleanConfidence = share(Float32Array, "clean_confidence", networks);
  const cleanCorrect = share(Uint8Array, "clean_correct", networks);
  const attackedConfidence = share(Float32Array, "attacked_confidence", networks * threats);
  const attackedWrong = share(Uint8Array, "attacked_wrong", networks * threats);
  const of = (network, threat) => ({
    cleanConfidence: cleanConfidence(network).data,
    cleanCorrect: cleanCorrect(network).data,
    attackedConfidence: attackedConfidence(network * threats + threat).data,
    attackedWrong: attackedWrong(network * threats + threat).data,
  });
  return { of, count: model.get("clean_images").byteLength / size(model.get("image_shape")) };
}

/** Whether a confidence in float32 is accepted; tau is rounded likewise, or a confidence would not equal itself. */
export const accepts = (confidence, tau) => confidence >= Math.fround(tau);

/**
 * What threshold tau makes of paired clean and attacked images, each a share, or null where it would be 0/0. `adversarial`:
 * of the images that the network has right before the attack and wrong after it, those rejected.
 */
export function rates({ cleanConfidence, cleanCorrect, attackedConfidence, attackedWrong }, tau) {
  const count = cleanConfidence.length;
  let accepted = 0, wrong = 0, either = 0, eitherWrong = 0, found = 0, caught = 0;
  for (let i = 0; i < count; i++) {
    const clean = accepts(cleanConfidence[i], tau);
    const attacked = accepts(attackedConfidence[i], tau);
    const errs = clean && !cleanCorrect[i];
    accepted += clean;
    wrong += errs;
    either += clean || attacked;
    eitherWrong += errs || (attacked && Boolean(attackedWrong[i]));
    if (cleanCorrect[i] && attackedWrong[i]) {
      found += 1;
      caught += !attacked;
    }
  }
  const share = (part, whole) => (whole ? part / whole : null);
  const error = share(wrong, accepted);
  return {
    accuracy: share(accepted - wrong, accepted),
    cleanRejected: share(count - accepted, count),
    error,
    robustError: share(eitherWrong, either),
    adversarialRejected: share(caught, found),
  };
}

/** The rates as numbers with names; `paint` returns them in a sentence. */
function makeNumbers() {
  const shown = [
    ["accuracy", "accuracy on accepted clean images", "nothing accepted"],
    ["error", "Err(τ), error on accepted clean images", "nothing accepted"],
    ["robustError", "RErr(τ), robust error", "nothing accepted"],
    ["cleanRejected", "clean images rejected", ""],
    ["adversarialRejected", "adversarial examples rejected", "there are none"],
  ].map(([name, words, none]) => ({ name, words, none, value: h("dd") }));
  const element = h("dl", { class: "advbook-rates" }, ...shown.map(({ words, value }) => h("div", {}, h("dt", {}, words), value)));
  const paint = (now) => {
    const said = shown.map(({ name, words, none, value }) => {
      value.textContent = now[name] === null ? none : percent(now[name]);
      return `${words}: ${value.textContent}`;
    });
    return `${said.join("; ")}.`;
  };
  return { element, paint };
}

/** A small picture with its verdict; `say` returns its name in a list if it changed sides, else an empty list. */
function makeThumb(name) {
  const { element, show: showTensor, say: sayWords } = makePicture();
  element.classList.add("advbook-thumb");
  const show = (bytes) => showTensor(unit(bytes));
  const say = (confidence, right, accepted, changed) => {
    const side = accepted ? "accepted" : "rejected";
    const words = `class ${right ? "right" : "wrong"}, confidence ${percent(confidence)}, ${changed ? "now " : ""}${side}`;
    sayWords(`${name}: ${words}.`, `${right ? "✓" : "✕"} ${(100 * confidence).toFixed(0)} %\n${accepted ? "" : "⊘ "}${side}`);
    element.classList.toggle("advbook-wrong", !right);
    element.classList.toggle("advbook-rejected", !accepted);
    element.classList.toggle("advbook-changed", changed);
    return changed ? [`${name}, now ${side}`] : [];
  };
  return { element, show, say };
}

export default { render };
