// What is chosen: layers, thresholds, filters and order; the images that fit; and the address that holds all of it.

const STATES = [ // of an image; chips filter by them
  { key: "predicted", name: "predicted", has: (app, matcher, image) => Boolean(matcher && matcher.layer.known[image]) },
  { key: "unpredicted", name: "not predicted", has: (app, matcher, image) => Boolean(matcher && !matcher.layer.known[image]) },
  { key: "broken", name: "without pixels", has: (app, matcher, image) => app.broken.has(image) },
];
const SORTS = ["data", "worst", "errors", "objects", "boxes", "name"];

/** The choices of a page that was just opened. */
function firstChoices(data) {
  return {
    query: "",
    sort: "data",
    kinds: new Set(),
    classes: new Set(),
    states: new Set(),
    score: startingScore(data.layers[0]),
    iou: 0.5,
    judge: 0, // the layer whose errors are named
    shown: [true, ...data.layers.map((_, i) => i === 0)], // annotations, then the layers
    sides: false,
    labels: true,
    byClass: false,
    image: -1, // the image in full size
  };
}

/** The score threshold with the best F1, rounded down so that boxes of just that score are shown. */
function startingScore(layer) {
  if (!layer) return 0;
  return layer.best === null ? 0.3 : Math.floor(layer.best * 100 + 1e-9) / 100;
}

/** The numbers of the images that fit the choices, in order; those that the judged layer did not predict come last. */
function selectImages(app, matcher) {
  const { data, choices } = app, query = choices.query.trim().toLowerCase();
  const states = STATES.filter((state) => choices.states.has(state.key));
  const images = [];
  for (let image = 0; image < data.size; image++) {
    if (query && !data.lowerNames[image].includes(query)) continue;
    if (states.length && !states.some((state) => state.has(app, matcher, image))) continue;
    if (choices.kinds.size ? !hasChosenError(data, choices, matcher, image) : !hasChosenClass(data, choices, matcher, image)) continue;
    images.push(image);
  }
  const sorted = sortImages(images, data, choices, matcher);
  if (!matcher) return sorted;
  const isKnown = (image) => matcher.layer.known[image];
  return [...sorted.filter(isKnown), ...sorted.filter((image) => !isKnown(image))];
}

/** Whether an image has an annotated or a shown box of a chosen class; true without chosen classes. */
function hasChosenClass(data, choices, matcher, image) {
  if (!choices.classes.size) return true;
  for (const layer of [data.annotations, matcher && matcher.layer]) {
    if (!layer) continue;
    for (let i = layer.offsets[image]; i < layer.offsets[image + 1]; i++) {
      if (layer.scores && layer.scores[i] < choices.score) break; // by falling score
      if (choices.classes.has(layer.labels[i])) return true;
    }
  }
  return false;
}

/** Whether an image has an error of a chosen kind, of a chosen class where classes are chosen. */
function hasChosenError(data, choices, matcher, image) {
  if (!matcher) return false;
  if (!choices.classes.size) return [...choices.kinds].some((kind) => matcher.counts[kind][image]);
  const { layer, truth } = matcher;
  for (let d = layer.offsets[image]; d < layer.offsets[image + 1]; d++) {
    if (!choices.kinds.has(matcher.kinds[d])) continue;
    if (choices.classes.has(layer.labels[d])) return true;
    if (matcher.partners[d] >= 0 && choices.classes.has(truth.labels[matcher.partners[d]])) return true;
  }
  if (!choices.kinds.has(MISSED)) return false;
  for (let g = truth.offsets[image]; g < truth.offsets[image + 1]; g++) {
    if (matcher.states[g] === MISSED && choices.classes.has(truth.labels[g])) return true;
  }
  return false;
}

/** The images in the chosen order; images of equal rank stay as in the data. */
function sortImages(images, data, choices, matcher) {
  if (choices.sort === "name") {
    const collator = new Intl.Collator("en", { numeric: true });
    return images.sort((a, b) => collator.compare(data.names[a], data.names[b]) || a - b);
  }
  const rank = rankOf(data, choices, matcher);
  if (!rank) return images;
  const ranks = new Map(images.map((image) => [image, rank(image)]));
  return images.sort((a, b) => ranks.get(a) - ranks.get(b) || a - b);
}

/** A function whose small values come first; null for the order of the data. */
function rankOf(data, choices, matcher) {
  if (choices.sort === "objects" && data.annotations) return (image) => -countObjects(data, image);
  if (!matcher) return null;
  if (choices.sort === "boxes") return (image) => -countShown(matcher.layer, image, choices.score);
  if (!data.annotations) return null;
  if (choices.sort === "errors") return (image) => (isJudged(matcher, image) ? -countErrors(matcher, image) : 1);
  if (choices.sort === "worst") {
    return (image) => (isJudged(matcher, image) ? f1Of(matcher, image, countObjects(data, image)) - countErrors(matcher, image) * 1e-6 : 2);
  }
  return null;
}

/** The number of boxes of a layer on an image that reach the score. */
function countShown(layer, image, score) {
  let count = 0;
  for (let d = layer.offsets[image]; d < layer.offsets[image + 1] && layer.scores[d] >= score; d++) count++;
  return count;
}

/** The choices as the part of the address after "#"; what is as at first is left out. */
function toHash(data, choices) {
  const first = firstChoices(data), words = new URLSearchParams();
  const kindKeys = KINDS.filter((k) => choices.kinds.has(k.kind)).map((k) => k.key);
  if (choices.image >= 0) words.set("image", data.names[choices.image]);
  if (choices.query) words.set("q", choices.query);
  if (choices.sort !== first.sort) words.set("sort", choices.sort);
  if (kindKeys.length) words.set("errors", kindKeys.join(" "));
  for (const label of choices.classes) words.append("class", data.classes[label]);
  if (choices.states.size) words.set("images", [...choices.states].join(" "));
  if (choices.score !== first.score) words.set("score", String(choices.score));
  if (choices.iou !== first.iou) words.set("iou", String(choices.iou));
  if (choices.judge !== first.judge) words.set("judge", data.layers[choices.judge].name);
  if (choices.shown.join() !== first.shown.join()) words.set("layers", choices.shown.map(Number).join(""));
  if (choices.sides) words.set("view", "sides");
  if (!choices.labels) words.set("labels", "0");
  if (choices.byClass) words.set("colours", "class");
  return words.toString();
}

/** The choices in an address; what it does not say, or says wrongly, is as at first. */
function fromHash(data, hash) {
  const choices = firstChoices(data), words = new URLSearchParams(hash.replace(/^#/, ""));
  const number = (name, low, high, otherwise) => {
    const value = words.has(name) ? Number(words.get(name)) : NaN;
    return value >= low && value <= high ? value : otherwise;
  };
  choices.image = words.has("image") ? data.names.indexOf(words.get("image")) : -1;
  choices.query = words.get("q") || "";
  choices.sort = SORTS.includes(words.get("sort")) ? words.get("sort") : choices.sort;
  const keys = (words.get("errors") || "").split(" ");
  choices.kinds = new Set(data.annotations && data.layers.length ? KINDS.filter((k) => keys.includes(k.key)).map((k) => k.kind) : []);
  choices.classes = new Set(words.getAll("class").map((name) => data.classes.indexOf(name)).filter((label) => label >= 0));
  choices.states = new Set((words.get("images") || "").split(" ").filter((key) => STATES.some((state) => state.key === key)));
  choices.score = number("score", 0, 1, choices.score);
  choices.iou = number("iou", 0.2, 0.95, choices.iou);
  choices.judge = Math.max(0, data.layers.findIndex((layer) => layer.name === words.get("judge")));
  const layers = words.get("layers") || "";
  if (layers.length === choices.shown.length) choices.shown = [...layers].map((letter) => letter === "1");
  choices.sides = words.get("view") === "sides";
  choices.labels = words.get("labels") !== "0";
  choices.byClass = words.get("colours") === "class";
  return choices;
}
