// Boxes on a canvas. A view maps image pixels to the canvas: x * scale + left, y * scale + top.

const RESULT_COLOURS = ["#58d0ff", "#ff6fb5", "#ffa23e", "#ff8f8f", "#c79bff", "#ff5a4a", "#ffe14a", "#c8d0d8", "#c8d0d8"];
const LAYER_COLOURS = ["#58d0ff", "#7ee08a", "#ffb86b", "#d9a8ff", "#ffd866", "#ff9db0", "#8fe3d9", "#c0c8ff"];
const CLASS_COLOURS = [ // Okabe and Ito, lightened where they are dark
  "#e69f00", "#56b4e9", "#17b890", "#f0e442", "#4b9be0", "#ff7a2f", "#e08cc0", "#ffffff",
  "#d0648c", "#9999ff", "#99dd99", "#c09a5a", "#5fbf8f", "#ffb2b2", "#b0b0b0", "#8f80ff",
];
const ANNOTATION_COLOUR = "#ffffff";
const FAINT = 0.22; // opacity of boxes that the filters leave out

const classColour = (label) => CLASS_COLOURS[label % CLASS_COLOURS.length];
const layerColour = (layer) => LAYER_COLOURS[layer % LAYER_COLOURS.length];

/** Everything to draw on one image, errors last so that they lie on top.
 *
 * `only` limits it to one layer of the list (0: annotations, 1 and so on: predictions); null draws all shown layers. */
function boxesToDraw(app, image, only = null) {
  const { data, choices } = app;
  const shown = (place) => (only === null ? choices.shown[place] : only === place);
  const boxes = [];
  const judge = only !== null && only > 0 ? only - 1 : choices.judge;
  const matcher = app.matchers[judge];
  if (matcher) {
    setThresholds(matcher, choices.score, choices.iou);
    matchImage(matcher, image);
  }
  if (data.annotations) addAnnotations(boxes, app, image, matcher, shown(0), only);
  for (let i = data.layers.length - 1; i >= 0; i--) if (shown(i + 1)) addPredictions(boxes, app, image, i, i === judge);
  const order = (box) => (box.isFaint ? 0 : box.isError ? 2 : 1);
  return boxes.sort((a, b) => order(a) - order(b));
}

function addAnnotations(boxes, app, image, matcher, isShown, only) {
  const { data, choices } = app, { offsets, labels, crowd } = data.annotations;
  for (let g = offsets[image]; g < offsets[image + 1]; g++) {
    const state = matcher ? matcher.states[g] : crowd[g] ? CROWD : FOUND;
    const isMissed = state === MISSED || state === NEAR;
    if (!isShown && !(only !== null && isMissed)) continue; // beside predictions, the objects that they miss
    const colour = isMissed ? RESULT_COLOURS[MISSED] : ANNOTATION_COLOUR;
    const words = { [CROWD]: "crowd region", [MISSED]: "missed", [NEAR]: "not found" }[state] || "annotated";
    boxes.push({
      id: `a${g}`, boxes: data.annotations.boxes, at: 4 * g, label: labels[g], score: null, words, isMissed,
      kind: state === MISSED ? MISSED : null,
      colour: choices.byClass ? classColour(labels[g]) : colour,
      width: isMissed ? 2 : 1.25, dash: isMissed ? [6, 4] : state === CROWD ? [2, 4] : [],
      isError: isMissed, isFaint: isLeftOut(choices, labels[g], -1, state === MISSED ? MISSED : null), source: "annotations",
    });
  }
}

function addPredictions(boxes, app, image, place, isJudge) {
  const { data, choices } = app, layer = data.layers[place], matcher = app.matchers[place];
  const judged = isJudge && isJudged(matcher, image);
  for (let d = layer.offsets[image]; d < layer.offsets[image + 1] && layer.scores[d] >= choices.score; d++) {
    const kind = judged ? matcher.kinds[d] : null;
    const partner = judged ? matcher.partners[d] : -1;
    const isError = judged && kind > HIT && kind < MISSED;
    const other = partner >= 0 ? matcher.truth.labels[partner] : -1;
    const result = judged ? RESULT_COLOURS[kind] : layerColour(place);
    boxes.push({
      id: `${place}:${d}`, boxes: layer.boxes, at: 4 * d, label: layer.labels[d], score: layer.scores[d],
      words: judged ? KIND_NAMES[kind] : "predicted", overlap: judged && partner >= 0 ? matcher.overlaps[d] : null,
      kind, other: isError && other !== layer.labels[d] ? other : -1,
      colour: choices.byClass ? classColour(layer.labels[d]) : result,
      width: 2, dash: isJudge ? [] : [8, 3], isError, isMissed: false,
      isFaint: isLeftOut(choices, layer.labels[d], other, kind), source: layer.name,
    });
  }
}

/** Whether the filters of classes or errors leave a box out. */
function isLeftOut(choices, label, other, kind) {
  if (choices.classes.size && !choices.classes.has(label) && !choices.classes.has(other)) return true;
  return choices.kinds.size > 0 && !choices.kinds.has(kind);
}

/** Draws boxes with a dark rim, which keeps them visible on any image. */
function drawBoxes(context, boxes, view, thickness = 1) {
  for (const box of boxes) {
    const [x, y, width, height] = placed(box, view);
    context.globalAlpha = box.isFaint ? FAINT : 1;
    context.setLineDash(box.dash);
    if (!box.isFaint) {
      context.strokeStyle = "rgba(0,0,0,.5)";
      context.lineWidth = (box.width + 1.6) * thickness;
      context.strokeRect(x, y, width, height);
    }
    context.strokeStyle = box.colour;
    context.lineWidth = box.width * thickness;
    context.strokeRect(x, y, width, height);
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
}

/** Left, top, width and height of a box on the canvas. */
function placed(box, view) {
  const b = box.boxes, at = box.at;
  return [b[at] * view.scale + view.left, b[at + 1] * view.scale + view.top, b[at + 2] * view.scale, b[at + 3] * view.scale];
}

/** Writes names on boxes, the errors first; a name that would cover another is left out. */
function drawLabels(context, app, boxes, view, size) {
  context.font = "600 12px system-ui, sans-serif";
  context.textBaseline = "middle";
  const taken = [];
  for (const box of [...boxes].reverse()) {
    if (box.isFaint || (box.source === "annotations" && !box.isMissed && app.data.layers.length && app.choices.shown.slice(1).some(Boolean))) continue;
    const [x, y, width, height] = placed(box, view);
    if (x > size.width || y > size.height || x + width < 0 || y + height < 0) continue;
    const text = labelOf(app, box);
    const wide = context.measureText(text).width + 10;
    const left = Math.max(0, Math.min(x, size.width - wide));
    const top = y >= 18 ? y - 18 : Math.max(0, y);
    if (taken.some(([l, t, w]) => left < l + w && l < left + wide && top < t + 18 && t < top + 18)) continue;
    taken.push([left, top, wide]);
    context.fillStyle = box.colour;
    context.fillRect(left, top, wide, 18);
    context.fillStyle = "#0b1016";
    context.fillText(text, left + 5, top + 9.5);
  }
}

/** The name on a box: its class, its score, and the kind of an error. */
function labelOf(app, box) {
  const name = shorten(app.data.classes[box.label], 24);
  if (box.score === null) return box.isMissed ? `${box.words}: ${name}` : name;
  return box.isError ? `${name} ${box.score.toFixed(2)} · ${box.words}` : `${name} ${box.score.toFixed(2)}`;
}

const shorten = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

/** Gives a canvas the size of its place, sharp on dense screens; returns its context, cleared. */
function sized(canvas, width, height) {
  const density = Math.min(window.devicePixelRatio || 1, 3);
  const [w, h] = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
