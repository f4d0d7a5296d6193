// The controls beside the grid: layers, sliders, errors and classes.

const MANY_CLASSES = 12; // more get a field to search them

/** Makes the controls; `change(part)` is called after each choice. */
function makeControls(app, change) {
  const { data } = app, controls = {};
  makeLayers(app, byId("layers"), change);
  makeLayers(app, byId("panel-layers"), change);
  const kinds = KINDS.map((kind) => makeChip(app.choices, "kinds", kind.kind, kind.name, RESULT_COLOURS[kind.kind], kind.text, change));
  byId("kinds").replaceChildren(...kinds.map((chip) => chip.button));
  byId("help-kinds").replaceChildren(...KINDS.flatMap((kind) => [make("dt", { textContent: kind.name }), make("dd", { textContent: kind.text })]));
  const classes = data.classes.map((name, label) => makeChip(app.choices, "classes", label, name, classColour(label), name, change));
  byId("classes").replaceChildren(...classes.map((chip) => chip.button));
  const states = STATES.map((state) => makeChip(app.choices, "states", state.key, state.name, null, state.name, change));
  byId("states").replaceChildren(...states.map((chip) => chip.button));
  byId("found-swatch").style.setProperty("--swatch", RESULT_COLOURS[HIT]);
  const canJudge = Boolean(data.annotations && data.layers.length);
  byId("errors").hidden = byId("iou-row").hidden = !canJudge;
  byId("thresholds").hidden = !data.layers.length;
  byId("class-search-row").hidden = data.classes.length <= MANY_CLASSES;
  for (const option of byId("sort").options) {
    option.hidden = option.disabled = {
      worst: !canJudge, errors: !canJudge, objects: !data.annotations, boxes: !data.layers.length,
    }[option.value] || false;
  }

  /** Brings all controls in line with the choices. */
  controls.update = (totals) => {
    const { choices } = app, layer = data.layers[choices.judge];
    byId("search").value = choices.query;
    byId("sort").value = choices.sort;
    byId("score").value = choices.score;
    byId("score-text").value = choices.score.toFixed(2);
    byId("iou").value = choices.iou;
    byId("iou-text").value = choices.iou.toFixed(2);
    const best = layer && layer.best !== null && startingScore(layer);
    byId("best").hidden = best === false || best === undefined || best === choices.score;
    if (!byId("best").hidden) byId("best").textContent = `best F1 from ${best.toFixed(2)}`;
    if (canJudge) {
      byId("errors-title").textContent = data.layers.length > 1 ? `Errors of ${layer.name}` : "Errors";
      byId("found-count").textContent = totals[HIT].toLocaleString("en");
      KINDS.forEach((kind, i) => kinds[i].update(totals[kind.kind]));
    }
    const counts = countClasses(app);
    classes.forEach((chip, label) => chip.update(counts[label]));
    for (const update of app.layerUpdates) update();
    const matcher = app.matchers[choices.judge];
    const images = STATES.map((state) => countImages(data, (image) => state.has(app, matcher, image)));
    states.forEach((chip, i) => {
      chip.update(images[i]);
      chip.button.hidden = !images[i] && !choices.states.has(STATES[i].key);
    });
    byId("states-section").hidden = !images[1] && !images[2] && !data.leftOut.length && !choices.states.size;
    byId("left-out").hidden = !data.leftOut.length;
    const used = choices.kinds.size + choices.classes.size + choices.states.size + (choices.query ? 1 : 0);
    byId("filter-count").textContent = used;
    byId("filter-count").hidden = !used;
    byId("reset").disabled = !used;
  };

  if (data.leftOut.length) {
    const names = data.leftOut.slice(0, 5).map((name) => shorten(name, 60)).join(", ") + (data.leftOut.length > 5 ? ", …" : "");
    byId("left-out").textContent = `${data.leftOut.length.toLocaleString("en")} more left out, since nothing tells the size: ${names}`;
  }

  const reset = () => {
    Object.assign(app.choices, { query: "" });
    app.choices.kinds.clear();
    app.choices.classes.clear();
    app.choices.states.clear();
    change();
  };
  byId("search").addEventListener("input", (event) => ((app.choices.query = event.target.value), change()));
  byId("sort").addEventListener("change", (event) => ((app.choices.sort = event.target.value), change()));
  byId("score").addEventListener("input", (event) => ((app.choices.score = Number(event.target.value)), change()));
  byId("iou").addEventListener("input", (event) => ((app.choices.iou = Number(event.target.value)), change()));
  byId("best").addEventListener("click", () => ((app.choices.score = startingScore(data.layers[app.choices.judge])), change()));
  byId("reset").addEventListener("click", reset);
  byId("reset-too").addEventListener("click", reset);
  byId("class-search").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    classes.forEach((chip, label) => (chip.button.hidden = !data.classes[label].toLowerCase().includes(wanted)));
  });
  return controls;
}

/** A row for each layer: a box to show it, and where there are several, which one the errors are of. */
function makeLayers(app, place, change) {
  const { data } = app, names = layerNames(data), rows = [];
  names.forEach((name, i) => {
    if (!i && !data.annotations) return;
    const box = make("input", { type: "checkbox" }), swatch = make("i", { className: "swatch" });
    box.addEventListener("change", () => ((app.choices.shown[i] = box.checked), change()));
    const known = i ? data.layers[i - 1].known : data.annotations.known;
    const images = known.reduce((sum, one) => sum + one, 0);
    const aside = images < data.size ? `${images.toLocaleString("en")} of ${data.size.toLocaleString("en")} images` : "";
    const label = make("label", {}, box, swatch, make("span", { textContent: name }), make("kbd", { textContent: i < 9 ? i + (data.annotations ? 1 : 0) : "" }));
    const row = make("div", { className: "layer" }, label);
    if (aside) row.append(make("span", { className: "soft", textContent: aside }));
    if (i && data.layers.length > 1 && data.annotations) row.append(makeJudge(app, i - 1, change));
    rows.push(row);
    app.layerUpdates.push(() => {
      box.checked = app.choices.shown[i];
      const isJudge = data.annotations && i - 1 === app.choices.judge;
      swatch.style.setProperty("--swatch", !i ? ANNOTATION_COLOUR : isJudge ? RESULT_COLOURS[HIT] : layerColour(i - 1));
    });
  });
  place.replaceChildren(...rows);
}

/** The button that makes a layer the one whose errors are named. */
function makeJudge(app, layer, change) {
  const button = make("button", { type: "button", className: "judge" });
  button.addEventListener("click", () => {
    app.choices.judge = layer;
    app.choices.shown[layer + 1] = true;
    change();
  });
  app.layerUpdates.push(() => {
    const on = app.choices.judge === layer;
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "errors of this" : "show errors";
    button.setAttribute("aria-label", `Show the errors of ${app.data.layers[layer].name}`);
  });
  return button;
}

/** A button that adds a value to a set of the choices, or takes it out. */
function makeChip(choices, name, value, text, colour, title, change) {
  const swatch = colour ? [make("i", { className: "swatch" })] : [], count = make("span", { className: "count" });
  for (const one of swatch) one.style.setProperty("--swatch", colour);
  const button = make("button", { type: "button", className: "chip", title }, ...swatch, make("span", { className: "chip-name", textContent: text }), count);
  button.addEventListener("click", () => {
    if (!choices[name].delete(value)) choices[name].add(value);
    change();
  });
  return {
    button,
    update: (number) => {
      count.textContent = number.toLocaleString("en");
      button.setAttribute("aria-pressed", String(choices[name].has(value)));
    },
  };
}

/** The number of images for which a function is true. */
function countImages(data, has) {
  let count = 0;
  for (let image = 0; image < data.size; image++) count += has(image) ? 1 : 0;
  return count;
}

/** The number of annotated objects of each class; without annotations, of the boxes that are shown. */
function countClasses(app) {
  const { data, choices } = app, counts = new Array(data.classes.length).fill(0);
  if (data.annotations) {
    const { labels, crowd } = data.annotations;
    for (let g = 0; g < labels.length; g++) if (!crowd[g]) counts[labels[g]]++;
    return counts;
  }
  const layer = data.layers[choices.judge];
  if (layer) for (let d = 0; d < layer.labels.length; d++) if (layer.scores[d] >= choices.score) counts[layer.labels[d]]++;
  return counts;
}
