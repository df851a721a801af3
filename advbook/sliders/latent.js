// The latent slider: z -> decoder -> picture -> classifier, all in the reader's browser. Joined behind dom.js.

function render({ model, el }) {
  const decode = load(model.get("decoder"), model.get("decoder_weights"));
  const classify = load(model.get("classifier"), model.get("classifier_weights"));
  const names = model.get("class_names");
  const picture = makePicture();
  const answer = makeAnswer(names);

  const draw = (values) => {
    const { font, letter, ...theta } = values;
    const image = decode({ shape: [8], data: [...Object.values(theta), font, letter] });
    const sentence = answer.paint(softmax(classify(image)).data, letter);
    picture.paint(image, `The letter ${names[letter]}, transformed. ${sentence}`, `the decoded letter ${names[letter]}`);
    return sentence;
  };
  const views = [h("div", { class: "advbook-views" }, picture.element, answer.element)];
  return mount(model, el, { name: "Latent slider", views, note: model.get("note"), draw });
}

export default { render };
