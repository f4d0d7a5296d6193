// Matches predictions with annotations and names the errors, with the rules and numbers of `foldfuse score`.
//
// Boxes choose in falling order of score; each takes the free annotated box of its class with the highest IoU, if that reaches
// the threshold. The errors are those of TIDE (Bolya et al., arXiv:2008.08115).

const HIT = 0, CLASSIFICATION = 1, LOCALISATION = 2, BOTH = 3, DUPLICATE = 4, BACKGROUND = 5, MISSED = 6;
const IGNORED = 7, BELOW = 8; // of a box that only a crowd region covers; of a box under the score threshold
const FOUND = 0, NEAR = 1, CROWD = 2; // of an annotated box: found; not found, but a box with another error is on it; MISSED
const NEAR_IOU = 0.1; // below, a box has nothing to do with an object
const MAX_DETECTIONS = 100; // of a class and an image count, as in COCO's scores

const KINDS = [
  { kind: MISSED, key: "missed", name: "missed", text: "object that no box is near" },
  { kind: BACKGROUND, key: "false", name: "background", text: "nothing is there" },
  { kind: CLASSIFICATION, key: "class", name: "classification", text: "right place, wrong class" },
  { kind: LOCALISATION, key: "place", name: "localisation", text: "right class, IoU from 0.1 to the threshold" },
  { kind: BOTH, key: "both", name: "class and localisation", text: "wrong class, and the box is off" },
  { kind: DUPLICATE, key: "double", name: "duplicate", text: "a second box on a found object" },
];
const KIND_NAMES = ["found", "classification error", "localisation error", "class and localisation error", "duplicate", "background error", "missed", "in a crowd region", ""];

/** IoU of box d of `boxes` with box g of `truth`; with a crowd region, the part of the box inside it. */
function overlapOf(boxes, d, truth, g, isCrowd) {
  const a = 4 * d, b = 4 * g;
  const width = Math.min(boxes[a + 2] + boxes[a], truth[b + 2] + truth[b]) - Math.max(boxes[a], truth[b]);
  const height = Math.min(boxes[a + 3] + boxes[a + 1], truth[b + 3] + truth[b + 1]) - Math.max(boxes[a + 1], truth[b + 1]);
  if (width <= 0 || height <= 0) return 0;
  const area = boxes[a + 2] * boxes[a + 3];
  const union = isCrowd ? area : area + truth[b + 2] * truth[b + 3] - width * height;
  return (width * height) / union;
}

/** A matcher of one layer: results of the last thresholds, image by image, made when they are asked for. */
function makeMatcher(data, layer) {
  const none = { offsets: new Uint32Array(data.size + 1), boxes: [], labels: [], crowd: [], known: new Uint8Array(data.size) };
  const truth = data.annotations || none;
  return {
    layer,
    truth,
    score: NaN,
    iou: NaN,
    kinds: new Uint8Array(layer.labels.length), // of each box: HIT, an error, IGNORED or BELOW
    partners: new Int32Array(layer.labels.length).fill(-1), // the annotated box that it found, or that it is nearest to
    overlaps: new Float32Array(layer.labels.length), // the IoU with it
    states: new Uint8Array(truth.labels.length), // of each annotated box: FOUND, NEAR, CROWD or MISSED
    done: new Uint8Array(data.size),
    counts: Array.from({ length: 7 }, () => new Uint16Array(data.size)), // of HIT and each error, by image
  };
}

/** Forgets the results where the thresholds are others. */
function setThresholds(matcher, score, iou) {
  if (matcher.score === score && matcher.iou === iou) return;
  matcher.score = score;
  matcher.iou = iou;
  matcher.done.fill(0);
}

/** Whether an image can be judged: it is annotated, and the layer predicted it. */
function isJudged(matcher, image) {
  return Boolean(matcher.truth.known[image] && matcher.layer.known[image]);
}

/** Matches one image, unless that is done. */
function matchImage(matcher, image) {
  if (matcher.done[image]) return;
  matcher.done[image] = 1;
  const { layer, truth, kinds, states, counts, score } = matcher;
  const first = truth.offsets[image], last = truth.offsets[image + 1];
  for (const column of counts) column[image] = 0;
  const judged = isJudged(matcher, image);
  for (let d = layer.offsets[image]; d < layer.offsets[image + 1]; d++) {
    kinds[d] = layer.scores[d] >= score ? IGNORED : BELOW;
    matcher.partners[d] = -1;
    matcher.overlaps[d] = 0;
  }
  for (let g = first; g < last; g++) states[g] = truth.crowd[g] ? CROWD : judged ? MISSED : FOUND;
  if (!judged) return;
  const falsePositives = takeMatches(matcher, image);
  const near = falsePositives.map((d) => classify(matcher, d, first, last));
  for (const g of near) if (g >= 0 && states[g] === MISSED) states[g] = NEAR;
  for (let d = layer.offsets[image]; d < layer.offsets[image + 1]; d++) if (kinds[d] < MISSED) counts[kinds[d]][image]++;
  for (let g = first; g < last; g++) if (states[g] === MISSED) counts[MISSED][image]++;
}

/** Lets the boxes of an image choose their objects; returns those that are neither found objects nor ignored. */
function takeMatches(matcher, image) {
  const { layer, truth, kinds, states, iou } = matcher;
  const first = truth.offsets[image], last = truth.offsets[image + 1];
  const rest = [], seen = new Map();
  for (let d = layer.offsets[image]; d < layer.offsets[image + 1] && kinds[d] !== BELOW; d++) {
    const label = layer.labels[d], number = (seen.get(label) || 0) + 1;
    seen.set(label, number);
    if (number > MAX_DETECTIONS) continue;
    let best = -1, bestOverlap = iou;
    for (let g = first; g < last; g++) {
      if (truth.labels[g] !== label) continue;
      const isCrowd = Boolean(truth.crowd[g]);
      if (isCrowd && best >= 0 && !truth.crowd[best]) break; // crowd regions come last
      if (!isCrowd && states[g] === FOUND) continue;
      const overlap = overlapOf(layer.boxes, d, truth.boxes, g, isCrowd);
      if (overlap >= bestOverlap) [best, bestOverlap] = [g, overlap];
    }
    if (best < 0) {
      rest.push(d);
      continue;
    }
    matcher.partners[d] = best;
    matcher.overlaps[d] = bestOverlap;
    if (truth.crowd[best]) continue; // stays IGNORED
    kinds[d] = HIT;
    states[best] = FOUND;
  }
  return rest;
}

/** Names the error of box d; returns the annotated box that a fix would find, or -1. */
function classify(matcher, d, first, last) {
  const { layer, truth, kinds, states, iou } = matcher;
  let same = 0, sameBox = -1, other = 0, otherBox = -1, onFound = false;
  for (let g = first; g < last; g++) {
    const isSame = truth.labels[g] === layer.labels[d];
    if (!isSame && truth.crowd[g]) continue;
    const overlap = overlapOf(layer.boxes, d, truth.boxes, g, Boolean(truth.crowd[g]));
    if (isSame && overlap > same) [same, sameBox] = [overlap, g];
    if (!isSame && overlap > other) [other, otherBox] = [overlap, g];
    if (isSame && overlap >= iou && states[g] === FOUND) onFound = true;
  }
  let target = -1;
  if (same >= NEAR_IOU && same <= iou) [kinds[d], target] = [LOCALISATION, sameBox];
  else if (other >= iou) [kinds[d], target] = [CLASSIFICATION, otherBox];
  else if (onFound) kinds[d] = DUPLICATE;
  else if (other <= NEAR_IOU) kinds[d] = BACKGROUND;
  else kinds[d] = BOTH;
  const isOther = kinds[d] === CLASSIFICATION || (kinds[d] === BOTH && other > same);
  matcher.partners[d] = kinds[d] === BACKGROUND ? -1 : isOther ? otherBox : sameBox;
  matcher.overlaps[d] = isOther ? other : same;
  return target;
}

/** Matches all images; returns the total of HIT and of each error. */
function matchAll(matcher, size) {
  const totals = new Array(7).fill(0);
  for (let image = 0; image < size; image++) {
    matchImage(matcher, image);
    for (let kind = 0; kind < 7; kind++) totals[kind] += matcher.counts[kind][image];
  }
  return totals;
}

/** The number of errors on an image, once it is matched. */
function countErrors(matcher, image) {
  let errors = 0;
  for (let kind = CLASSIFICATION; kind <= MISSED; kind++) errors += matcher.counts[kind][image];
  return errors;
}

/** F1 of an image: 1 where nothing is annotated and nothing predicted. */
function f1Of(matcher, image, objects) {
  const hits = matcher.counts[HIT][image];
  let boxes = 0;
  for (let kind = HIT; kind <= BACKGROUND; kind++) boxes += matcher.counts[kind][image];
  return boxes + objects ? (2 * hits) / (boxes + objects) : 1;
}
