// What the figures share: the card with its controls, pictures and probability bars. Joined behind interpreter.js.

const SVG = "http://www.w3.org/2000/svg";
const QUIET = 500; // ms without a move before the screen reader is told

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

const percent = (p) => `${(100 * p).toFixed(1)} %`;

/**
 * Mounts a figure: a card with `views`, one control for each entry of the trait `controls`, and a Reset button.
 * `draw(values)` paints the views for the values of the controls and returns a sentence for the screen reader.
 * Every trait is followed both ways: a move sets it, and setting it (in Python, too) moves the figure.
 */
function mount(model, el, { name, views, note, draw }) {
  const id = `advbook-${Math.random().toString(36).slice(2)}`;
  const controls = model.get("controls").map((control) => makeControl(model, control, `${id}-${control.name}`));
  const spoken = h("output", { class: "advbook-spoken", "aria-live": "polite" });
  const reset = h("button", { type: "button", class: "advbook-reset", "data-lm-suppress-shortcuts": "true" }, "Reset");
  const rows = h("div", { class: "advbook-controls" }, ...controls.map((control) => control.element));
  const foot = h("div", { class: "advbook-foot" }, h("p", { class: "advbook-note" }, note), reset);
  const card = h("div", { class: "advbook-card", role: "group", "aria-label": name }, ...views, rows, foot, spoken);
  let frame = 0;
  let quiet = 0;

  const paint = () => {
    const start = performance.now();
    const sentence = draw(Object.fromEntries(controls.map((control) => [control.name, model.get(control.name)])));
    card.dataset.frameMs = (performance.now() - start).toFixed(3);
    return sentence;
  };
  const onFrame = () => {
    frame = 0;
    const sentence = paint();
    clearTimeout(quiet);
    quiet = setTimeout(() => (spoken.textContent = sentence), QUIET);
  };
  const onChange = () => {
    controls.forEach((control) => control.show());
    frame ||= requestAnimationFrame(onFrame);
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

function makeControl(model, control, id) {
  const make = control.options ? makeSelect : makeRange;
  return { ...control, ...make(control, id, () => model.get(control.name), (value) => {
    model.set(control.name, value);
    model.save_changes();
  }) };
}

/** A labelled slider in the reader's units: `per` of them are one unit of the trait (180 / pi for an angle). */
function makeRange({ label, min, max, step, unit, per, digits }, id, get, set) {
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
  return { element: h("div", { class: "advbook-control" }, head, input), show };
}

function makeSelect({ label, options }, id, get, set) {
  const choices = options.map((text, i) => h("option", { value: i }, text));
  const select = h("select", { id, "data-lm-suppress-shortcuts": "true" }, ...choices);
  select.addEventListener("change", () => set(select.selectedIndex));
  const head = h("div", { class: "advbook-head" }, h("label", { for: id }, label));
  const show = () => (select.selectedIndex = get());
  return { element: h("div", { class: "advbook-control" }, head, select), show };
}

/** A picture with a caption: `paint(image, words, caption)` takes a tensor [1, H, W] in [0, 1], words for the ear. */
function makePicture() {
  const canvas = h("canvas", { role: "img" });
  const caption = h("figcaption");
  const paint = ({ data, shape: [, height, width] }, words, text) => {
    canvas.width = width;
    canvas.height = height;
    const pixels = new ImageData(width, height);
    for (let i = 0; i < data.length; i++) pixels.data.fill(255 * data[i], 4 * i, 4 * i + 3).fill(255, 4 * i + 3, 4 * i + 4);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    canvas.setAttribute("aria-label", words);
    caption.textContent = text;
  };
  return { element: h("figure", { class: "advbook-picture" }, canvas, caption), paint };
}

/** The classifier's answer: its prediction in words and one bar a class. `paint` returns the prediction's sentence. */
function makeAnswer(names) {
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
  const paint = (probabilities, label) => {
    const best = argmax(probabilities);
    bars.forEach(({ row, fillBar, value }, i) => {
      fillBar.style.width = `${100 * probabilities[i]}%`;
      value.textContent = percent(probabilities[i]);
      row.setAttribute("aria-valuenow", (100 * probabilities[i]).toFixed(1));
      row.setAttribute("aria-valuetext", percent(probabilities[i]));
      row.classList.toggle("advbook-true", i === label);
      row.classList.toggle("advbook-wrong", i === best && i !== label);
    });
    const sentence = `The classifier says ${names[best]}, with ${percent(probabilities[best])} confidence: `;
    const outcome = best === label ? "right." : `wrong, this is ${names[label]}.`;
    verdict.textContent = sentence + outcome;
    verdict.classList.toggle("advbook-wrong", best !== label);
    return sentence + outcome;
  };
  return { element: h("div", { class: "advbook-answer" }, verdict, list), paint };
}

function argmax(values) {
  return values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
}
