// The data of the page: typed arrays from base64, boxes as left, top, width, height.

const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };
const SIDE_DIGITS = 1e9; // sides are rounded to 1e-9 pixels, as in scoring

/** The typed array of a column. */
function decodeColumn(column) {
  const text = atob(column.data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ARRAYS[column.type](bytes.buffer);
}

/** Offsets (images + 1) from the number of boxes of each image. */
function offsetsOf(counts) {
  const offsets = new Uint32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i++) offsets[i + 1] = offsets[i] + counts[i];
  return offsets;
}

/** (n * 4) corners x1, y1, x2, y2 -> left, top, width, height, with the arithmetic of `foldfuse score`. */
function cornersToSides(corners) {
  const boxes = new Float64Array(corners);
  for (let i = 0; i < boxes.length; i += 4) {
    boxes[i + 2] = Math.round((boxes[i + 2] - boxes[i]) * SIDE_DIGITS) / SIDE_DIGITS;
    boxes[i + 3] = Math.round((boxes[i + 3] - boxes[i + 1]) * SIDE_DIGITS) / SIDE_DIGITS;
  }
  return boxes;
}

/** Boxes of all images in columns; image i owns rows offsets[i] to offsets[i + 1]. */
function decodeBoxes(columns) {
  return {
    offsets: offsetsOf(decodeColumn(columns.counts)),
    boxes: cornersToSides(decodeColumn(columns.boxes)),
    labels: decodeColumn(columns.labels),
  };
}

/** All that the page shows. Images keep their position in the dataset as their number. */
function decodeData(raw) {
  const annotations = raw.annotations && {
    ...decodeBoxes(raw.annotations),
    crowd: decodeColumn(raw.annotations.crowd),
    known: decodeColumn(raw.annotations.known), // 0 where an image has no annotations, which differs from no objects
  };
  const layers = raw.layers.map((layer) => ({
    ...decodeBoxes(layer),
    name: layer.name,
    best: layer.best,
    scores: decodeColumn(layer.scores),
    known: decodeColumn(layer.known),
  }));
  return {
    ...raw,
    size: raw.names.length,
    widths: decodeColumn(raw.widths),
    heights: decodeColumn(raw.heights),
    annotations,
    layers,
    lowerNames: raw.names.map((name) => name.toLowerCase()),
  };
}

/** The address of an image: "thumbs" (up to 256 px) or "previews" (up to 1280 px). */
function imageAddress(data, kind, image) {
  if (data.embedded) return "data:image/jpeg;base64," + data.embedded[kind][image];
  return `${data.files}/${kind}/${String(image).padStart(6, "0")}.jpg`;
}

/** The address of the file of an image; "" where the image has none. */
function originalAddress(data, image) {
  const rest = data.originals.rest[image];
  return rest === null ? "" : data.originals.base + rest;
}

/** The number of objects annotated on an image, crowd regions left out. */
function countObjects(data, image) {
  if (!data.annotations) return 0;
  const { offsets, crowd } = data.annotations;
  let count = 0;
  for (let g = offsets[image]; g < offsets[image + 1]; g++) count += crowd[g] ? 0 : 1;
  return count;
}
