// The Gaussian mixture before and after adversarial training, by the closed form. Joined behind dom.js.

const PLANES = [[0, 1], [0, 2], [1, 2]];
const SIDE = 340; // of the drawing
const MARGIN = 26; // for the numbers on its axes
const POINTS = 16; // attacked ones of each class

function render({ model, el }) {
  const [adversaries, mean] = [model.get("adversaries"), model.get("mean")];
  const names = mean.map((_, i) => `lambda_${i + 1}`);
  const plane = makePlane(mean, extent(mean, model.get("controls")));
  const bars = makeSpectrum(names.length);
  const words = h("p", { class: "advbook-move advbook-told", "aria-hidden": "true" });

  const draw = (values) => {
    const adversary = adversaries[values.adversary];
    const variances = names.map((name) => values[name]);
    const made = spectrum(adversary, variances, values.strength, values.noise);
    const sentence = describe(adversary, variances, made);
    words.textContent = sentence;
    bars.paint(variances, made.hardened);
    plane.paint(PLANES[values.plane ?? 0], variances, made, sentence);
    return sentence;
  };
  const views = [h("div", { class: "advbook-views" }, plane.element, bars.element), words];
  return mount(model, el, { name: "Gaussian mixture", views, note: model.get("note"), draw });
}

/** Reach k and variance s after adversarial training of each direction: advbook.sliders.mixture.spectrum. */
export function spectrum(adversary, variances, strength, noise) {
  const manifold = (v) => Math.max(v - noise, 0);
  const reaches = { regular: () => 1, generative: manifold, joint: (v) => 1 + manifold(v), "linear flow": (v) => v };
  const reach = variances.map((v) => strength * reaches[adversary](v));
  const hardened = variances.map((v, i) => (v + 2 * reach[i] + Math.sqrt(v * v + 4 * reach[i] * v)) / 2);
  return { reach, hardened };
}

/** Where the attack moves u, in a direction of reach k, on the model of variance s: e = k u / (s - k). */
export const attack = (u, k, s) => (k * u) / (s - k);

/** What happened, in words. */
export function describe(adversary, variances, { reach, hardened }) {
  if (reach.every((k) => k === 0)) return `The ${adversary} adversary reaches no direction: nothing changes.`;
  const factors = variances.map((v, i) => hardened[i] / v);
  const moved = Math.sqrt(reach.reduce((sum, k, i) => sum + (k * k) / hardened[i], 0));
  const length = `Its attack then moves a point by ${moved.toFixed(2)} (root mean square).`;
  const start = `Against the ${adversary} adversary`;
  if (Math.max(...factors) < 1.001 * Math.min(...factors)) return `${start} every direction grows by the same factor, ${factors[0].toFixed(2)}. ${length}`;
  const order = variances.map((_, i) => i).sort((a, b) => variances[a] - variances[b]);
  const sizes = variances.length === 2 ? ["small direction", "large one"] : ["smallest direction", "middle one", "largest one"];
  const grows = (i) => (reach[i] === 0 ? "does not grow" : `grows ${factors[i].toFixed(2)} times`);
  const parts = order.map((i, rank) => `the ${sizes[rank]} (${variances[i].toFixed(2)}) ${grows(i)}`);
  return `${start} ${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}. ${length}`;
}

/** Half the side of a square around both classes, wherever the controls stand: the scale never moves. */
function extent(mean, controls) {
  const most = (name) => controls.find((control) => control.name === name).max;
  const { hardened: [widest] } = spectrum("joint", [most("lambda_1")], most("strength"), 0);
  return Math.max(...mean.map(Math.abs)) + 2 * Math.sqrt(widest);
}

/** Two directions of the mixture: ellipses before and after, and the attack's moves as arrows. */
function makePlane(mean, half) {
  const inner = SIDE - MARGIN;
  const scale = inner / (2 * half);
  const x = (v) => MARGIN + inner / 2 + scale * v;
  const y = (v) => inner / 2 - scale * v;
  const marks = ticks(-half, half, 6);
  const labels = [s("text", { x: SIDE - 4, y: inner - 6, "text-anchor": "end" }), s("text", { x: MARGIN + 4, y: 12 })];
  const axes = s("g", { "aria-hidden": "true" },
    ...marks.flatMap((v) => [tick(x(v), SIDE - 10, "middle", v), tick(MARGIN - 4, y(v) + 4, "end", v)]),
    ...marks.map((v) => s("line", { class: "advbook-grid", x1: x(v), x2: x(v), y1: 0, y2: inner })),
    ...marks.map((v) => s("line", { class: "advbook-grid", x1: MARGIN, x2: SIDE, y1: y(v), y2: y(v) })),
    ...labels);
  const sides = [1, -1].map((sign, i) => {
    const [before, after] = ["advbook-before", "advbook-hardened"].map((kind) => s("ellipse", { class: `${kind} advbook-class-${i}` }));
    const arrows = s("path", { class: "advbook-arrows" });
    const name = s("text", { class: `advbook-class-${i}`, "text-anchor": "middle" }, sign > 0 ? "+μ" : "−μ");
    return { sign, before, after, arrows, name };
  });
  const shown = sides.flatMap(({ before, after, arrows, name }) => [before, after, arrows, name]);
  const svg = s("svg", { class: "advbook-plot", viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img" }, axes, ...shown);

  const paint = (pair, variances, { reach, hardened }, sentence) => {
    const starts = Array.from({ length: POINTS }, (_, i) => [Math.cos, Math.sin].map((f, j) => 2 * Math.sqrt(variances[pair[j]]) * f((2 * Math.PI * i) / POINTS)));
    labels.forEach((label, j) => (label.textContent = `direction ${pair[j] + 1}`));
    sides.forEach(({ sign, before, after, arrows, name }) => {
      const middle = pair.map((i) => sign * mean[i]);
      [[before, variances], [after, hardened]].forEach(([ellipse, its]) => {
        const [rx, ry] = pair.map((i) => 2 * scale * Math.sqrt(its[i]));
        fill(ellipse, { cx: x(middle[0]), cy: y(middle[1]), rx, ry }, []);
      });
      fill(name, { x: x(middle[0]), y: y(middle[1]) + 4 }, []);
      const moves = starts.map((u) => {
        const end = u.map((v, j) => v + attack(v, reach[pair[j]], hardened[pair[j]]));
        return [u, end].map(([h1, h2]) => [x(middle[0] + h1), y(middle[1] + h2)]);
      });
      arrows.setAttribute("d", moves.map(arrow).join(""));
    });
    const drawn = `Two Gaussian classes in directions ${pair[0] + 1} and ${pair[1] + 1}, before and after adversarial training, and the attack's moves as arrows.`;
    svg.setAttribute("aria-label", `${drawn} ${sentence}`);
  };
  return { element: h("div", { class: "advbook-plane advbook-stay" }, svg), paint };
}

/** An arrow as a path; without a head where it is too short to have one. */
function arrow([[x1, y1], [x2, y2]]) {
  const [dx, dy] = [x2 - x1, y2 - y1];
  const length = Math.hypot(dx, dy);
  const line = `M${x1.toFixed(2)} ${y1.toFixed(2)}L${x2.toFixed(2)} ${y2.toFixed(2)}`;
  if (length < 2) return line;
  const head = Math.min(5, length / 2) / length;
  const [bx, by] = [x2 - head * dx, y2 - head * dy];
  const [wx, wy] = [0.5 * head * dy, -0.5 * head * dx];
  return `${line}M${(bx + wx).toFixed(2)} ${(by + wy).toFixed(2)}L${x2.toFixed(2)} ${y2.toFixed(2)}L${(bx - wx).toFixed(2)} ${(by - wy).toFixed(2)}`;
}

/** The variances before and after, a pair of bars a direction, and by how much each direction grows. */
function makeSpectrum(count) {
  const row = (kind, words) => {
    const bar = h("div", { class: `advbook-fill ${kind}` });
    const value = h("span", { class: "advbook-value" });
    const element = h("div", { class: "advbook-bar" }, h("span", { class: "advbook-name" }, words));
    element.append(h("div", { class: "advbook-track", "aria-hidden": "true" }, bar), value);
    return { element, bar, value };
  };
  const groups = Array.from({ length: count }, (_, i) => {
    const factor = h("span", { class: "advbook-value" });
    const head = h("div", { class: "advbook-head" }, h("span", {}, `direction ${i + 1}`), factor);
    const [before, after] = [row("advbook-was", "before"), row("advbook-is", "hardened")];
    return { factor, before, after, parts: [head, before.element, after.element] };
  });
  const title = h("p", { class: "advbook-network" }, "Variances");
  const list = h("div", { class: "advbook-bars" }, ...groups.flatMap(({ parts }) => parts));
  const paint = (variances, hardened) => {
    const most = Math.max(...hardened);
    groups.forEach(({ factor, before, after }, i) => {
      [[before, variances[i]], [after, hardened[i]]].forEach(([{ bar, value }, v]) => {
        bar.style.width = `${(100 * v) / most}%`;
        value.textContent = v.toFixed(2);
      });
      factor.textContent = `× ${(hardened[i] / variances[i]).toFixed(2)}`;
    });
  };
  return { element: h("div", { class: "advbook-spectrum" }, title, list), paint };
}

export default { render };
