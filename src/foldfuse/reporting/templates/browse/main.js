// Starts the page: reads the data, ties choices to grid, viewer, controls, keys and address.

const data = decodeData(JSON.parse(document.getElementById("data").textContent));
const app = {
  data,
  choices: fromHash(data, location.hash),
  matchers: data.layers.map((layer) => makeMatcher(data, layer)),
  broken: new Map(Object.entries(data.broken).map(([image, reason]) => [Number(image), reason])), // images without pixels, and why
  images: [], // the images that fit the filters, in order
  layerUpdates: [],
  lastHash: location.hash.replace(/^#/, ""),
};
const grid = makeGrid(app, byId("scroller"), byId("grid"), openImage);
const viewer = makeViewer(app, byId("viewer"), () => {
  const place = app.images.indexOf(app.choices.image);
  app.choices.image = -1;
  writeHash(true);
  if (place >= 0) grid.moveTo(place);
});
const controls = makeControls(app, schedule);
let frame = 0;

/** Shows the choices anew in the next frame, however often it is called before. */
function schedule() {
  if (!frame) frame = requestAnimationFrame(() => ((frame = 0), refresh()));
}

function refresh() {
  const { choices } = app, matcher = app.matchers[choices.judge];
  let totals = new Array(7).fill(0);
  if (matcher) {
    setThresholds(matcher, choices.score, choices.iou);
    totals = matchAll(matcher, data.size);
  }
  app.totals = totals;
  app.images = selectImages(app, matcher);
  controls.update(totals);
  byId("status").textContent = statusText(matcher);
  byId("nothing").hidden = app.images.length > 0;
  grid.show(app.images);
  if (choices.image >= 0) viewer.show(choices.image);
  else if (viewer.isOpen()) viewer.hide();
  writeHash(false);
}

/** How many images, objects, boxes and errors are shown. */
function statusText(matcher) {
  let objects = 0, boxes = 0, errors = 0;
  for (const image of app.images) {
    objects += countObjects(data, image);
    if (!matcher) continue;
    boxes += countShown(matcher.layer, image, app.choices.score);
    errors += countErrors(matcher, image);
  }
  const number = (value, word, more = `${word}s`) => `${value.toLocaleString("en")} ${value === 1 ? word : more}`;
  const parts = [app.images.length === data.size ? number(data.size, "image") : `${app.images.length.toLocaleString("en")} of ${number(data.size, "image")}`];
  if (data.annotations) parts.push(number(objects, "object"));
  if (matcher) parts.push(number(boxes, "predicted box", "predicted boxes"));
  if (matcher && data.annotations) parts.push(number(errors, "error"));
  if (data.leftOut.length) parts.push(`${number(data.leftOut.length, "more image")} left out`);
  return parts.join(" · ");
}

/** Writes the choices to the address; a new entry of the history where an image was opened or closed. */
function writeHash(isStep) {
  const hash = toHash(data, app.choices);
  if (hash === app.lastHash) return;
  app.lastHash = hash;
  const address = hash ? `#${hash}` : location.href.split("#")[0];
  try {
    history[isStep ? "pushState" : "replaceState"](null, "", address);
  } catch {
    location.replace(`#${hash}`); // browsers that refuse it for files
  }
}

function openImage(image) {
  const isStep = app.choices.image < 0;
  app.choices.image = image;
  writeHash(isStep);
  viewer.show(image);
}

/** Turns to another image of those that fit. */
app.turnBy = (step) => {
  const place = app.images.indexOf(app.choices.image);
  const other = app.images[place < 0 ? 0 : place + step];
  if (other === undefined) return;
  openImage(other);
  grid.moveTo(app.images.indexOf(other), false);
};

addEventListener("popstate", followAddress);
addEventListener("hashchange", followAddress);

/** Takes the choices of an address that was typed, or of a step in the history. */
function followAddress() {
  const hash = location.hash.replace(/^#/, "");
  if (hash === app.lastHash) return;
  app.lastHash = hash;
  const { kinds, classes, states, ...rest } = fromHash(data, hash);
  Object.assign(app.choices, rest);
  for (const [own, other] of [[app.choices.kinds, kinds], [app.choices.classes, classes], [app.choices.states, states]]) {
    own.clear();
    for (const value of other) own.add(value);
  }
  refresh();
}

// Filters as a drawer on narrow screens

function openFilters(isOpen) {
  document.body.classList.toggle("filters-open", isOpen);
  byId("open-filters").setAttribute("aria-expanded", String(isOpen));
  byId(isOpen ? "close-filters" : "open-filters").focus();
}
byId("open-filters").addEventListener("click", () => openFilters(true));
byId("close-filters").addEventListener("click", () => openFilters(false));

// Buttons and keys

function flip(name) {
  app.choices[name] = !app.choices[name];
  schedule();
}
function resizeCells(step) {
  grid.size = Math.min(Math.max(grid.size + step, 0), CELL_SIZES.length - 1);
  grid.layOut();
  grid.moveTo(grid.cursor, false);
}
function toggleLayer(number) {
  const place = data.annotations ? number - 1 : number;
  if (place >= app.choices.shown.length) return;
  app.choices.shown[place] = !app.choices.shown[place];
  schedule();
}
byId("sides").addEventListener("click", () => flip("sides"));
byId("labels").addEventListener("click", () => flip("labels"));
byId("colours").addEventListener("click", () => flip("byClass"));
byId("smaller").addEventListener("click", () => resizeCells(-1));
byId("larger").addEventListener("click", () => resizeCells(1));
byId("open-help").addEventListener("click", () => byId("help").showModal());
byId("close-help").addEventListener("click", () => byId("help").close());

const KEYS = { o: () => byId("original").hidden || !viewer.isOpen() || byId("original").click(), s: () => flip("sides"), l: () => flip("labels"), c: () => flip("byClass"), "?": () => byId("help").showModal() };
const VIEWER_KEYS = {
  ArrowRight: () => app.turnBy(1), ArrowLeft: () => app.turnBy(-1), j: () => app.turnBy(1), k: () => app.turnBy(-1),
  "+": () => viewer.zoomBy(ZOOM_STEP), "=": () => viewer.zoomBy(ZOOM_STEP), "-": () => viewer.zoomBy(1 / ZOOM_STEP), 0: () => viewer.fit(),
};
const GRID_KEYS = {
  ArrowRight: () => grid.moveTo(grid.cursor + 1), ArrowLeft: () => grid.moveTo(grid.cursor - 1),
  ArrowDown: () => grid.moveTo(grid.cursor + grid.columns), ArrowUp: () => grid.moveTo(grid.cursor - grid.columns),
  j: () => grid.moveTo(grid.cursor + 1), k: () => grid.moveTo(grid.cursor - 1),
  Home: () => grid.moveTo(0), End: () => grid.moveTo(grid.images.length - 1),
  "+": () => resizeCells(1), "=": () => resizeCells(1), "-": () => resizeCells(-1),
  "/": () => byId("search").focus(),
  Enter: () => app.images.length && openImage(app.images[grid.cursor]),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const target = event.target, isText = target.matches("input[type=search], select, textarea");
  if (event.key === "Escape" && !viewer.isOpen()) {
    if (document.body.classList.contains("filters-open")) openFilters(false);
    else if (target === byId("search")) grid.moveTo(grid.cursor);
    return;
  }
  if (isText && target === byId("search") && (event.key === "Enter" || event.key === "ArrowDown")) {
    event.preventDefault();
    grid.moveTo(0);
    return;
  }
  if (isText) return;
  const isArrow = event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End";
  if (isArrow && target.matches("input[type=range]")) return;
  if (event.key === "Enter" && target.matches("button, input, summary")) return;
  const act = (viewer.isOpen() ? VIEWER_KEYS : GRID_KEYS)[event.key] || KEYS[event.key];
  if (act) act();
  else if (/^[1-9]$/.test(event.key)) toggleLayer(Number(event.key));
  else return;
  event.preventDefault();
});

refresh();
if (app.choices.image >= 0) grid.moveTo(Math.max(0, app.images.indexOf(app.choices.image)), false);
