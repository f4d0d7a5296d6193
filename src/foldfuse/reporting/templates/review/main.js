// The page: filters, answers kept in the browser, keys, the large view, and the file of accepted corrections.

const data = JSON.parse(byId("data").textContent);
const suggestions = data.suggestions;
const STORE = `foldfuse-review:${data.fingerprint}`;
const keyOf = ({ kind, correction: c }) => JSON.stringify([kind, c.image_id, c.annotation_box || null, c.annotation_class || null, c.new_box || null, c.new_class || null]);
const CLASSES = `${STORE}:classes`;
const app = { answers: new Map(readStored(STORE).filter(([, value]) => value === "accept" || value === "reject")), shown: [], current: 0, showBoxes: true };

const chosen = new Map(readStored(CLASSES));
for (const one of suggestions) {
  const name = chosen.get(keyOf(one));
  if (one.correction.new_class && classesOf(one, data.classes).includes(name)) one.chosen = name;
}

/** What this browser keeps for these data: [key of a suggestion, "accept" or "reject", or the class chosen for it]. */
function readStored(name) {
  try {
    return Object.entries(JSON.parse(localStorage.getItem(name) || "{}"));
  } catch {
    return []; // a browser that keeps nothing for files, or something else under the name
  }
}

function keepAnswers() {
  try {
    localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(app.answers)));
    localStorage.setItem(CLASSES, JSON.stringify(Object.fromEntries(suggestions.filter((one) => one.chosen).map((one) => [keyOf(one), one.chosen]))));
  } catch {
    byId("note").textContent = "This browser keeps no answers of this page: download the corrections before you close it.";
    byId("note").hidden = false;
  }
}

const answerOf = (number) => app.answers.get(keyOf(suggestions[number]));
const cards = suggestions.map((one, number) => makeCard(one, number, data, {
  choose,
  answer: (n, value) => answer(n, value, false),
  open: (n) => openLarge(n),
  focus: (n) => moveTo(n, false),
}));
const inSight = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) drawCard(Number(entry.target.dataset.number));
}, { root: byId("scroller"), rootMargin: "600px" });
cards.forEach((each) => inSight.observe(each.card));
byId("cards").replaceChildren(...cards.map((each) => each.card));

function drawCard(number) {
  drawCut(cards[number].canvas, suggestions[number], app.showBoxes);
}

/** Brings all cards and counts in line with filters and answers. */
function refresh() {
  const kind = byId("kind").value, name = byId("class").value, state = byId("state").value;
  app.shown = suggestions.flatMap((one, number) => {
    const fits = (!kind || one.kind === kind) && (!name || one.correction.annotation_class === name || classOf(one) === name);
    return fits && (state === "all" || (answerOf(number) || "open") === state) ? [number] : [];
  });
  if (!app.shown.includes(app.current) && app.shown.length) app.current = app.shown.find((n) => n > app.current) ?? app.shown[app.shown.length - 1];
  const isShown = new Set(app.shown);
  cards.forEach((each, number) => (each.card.hidden = !isShown.has(number)));
  byId("nothing").hidden = app.shown.length > 0;
  updateAnswers();
}

function updateAnswers() {
  cards.forEach((each, number) => each.update(answerOf(number), number === app.current));
  const count = (value) => suggestions.reduce((sum, _, number) => sum + (answerOf(number) === value ? 1 : 0), 0);
  const accepted = count("accept"), rejected = count("reject"), open = suggestions.length - accepted - rejected;
  const some = app.shown.length === suggestions.length ? "" : `${app.shown.length.toLocaleString("en")} shown of `;
  byId("status").textContent = `${some}${suggestions.length.toLocaleString("en")} suggestion${suggestions.length === 1 ? "" : "s"} · ${accepted} accepted · ${rejected} rejected · ${open} open`;
  byId("download").disabled = !accepted;
  byId("download").textContent = accepted ? `Download ${accepted} correction${accepted === 1 ? "" : "s"}` : "Download corrections";
  if (byId("large").open) updateLarge();
}

/** Keeps an answer; the same answer again takes it back. By keys the next suggestion follows. */
function answer(number, value, goesOn) {
  const key = keyOf(suggestions[number]);
  if (!value || (!goesOn && app.answers.get(key) === value)) app.answers.delete(key);
  else app.answers.set(key, value);
  const next = app.shown[app.shown.indexOf(number) + 1];
  showAnswer(number);
  if (goesOn && next !== undefined) moveTo(next);
}

/** Keeps the answers after one has changed, and brings the page in line. */
function showAnswer(number) {
  keepAnswers();
  app.current = number;
  if (byId("state").value !== "all" && !byId("large").open) refresh();
  else updateAnswers();
}

/** Gives a suggestion another class than the proposed one, and accepts it. */
function choose(number, name) {
  const one = suggestions[number];
  one.chosen = name === one.correction.new_class ? undefined : name;
  app.answers.set(keyOf(one), "accept");
  showAnswer(number);
  drawCard(number);
}

function moveTo(number, isByKey = true) {
  if (number === undefined || number === app.current && !isByKey) return;
  app.current = number;
  if (isByKey && byId("large").open) showLarge();
  else if (isByKey) {
    cards[number].cut.focus({ preventScroll: true });
    cards[number].card.scrollIntoView({ block: "nearest" });
  }
  updateAnswers();
}

function turnBy(step) {
  const place = app.shown.indexOf(app.current);
  moveTo(app.shown[Math.min(Math.max(place + step, 0), app.shown.length - 1)]);
}

/** The number of cards in a row. */
function columns() {
  const first = app.shown[0];
  if (first === undefined) return 1;
  const top = cards[first].card.offsetTop;
  return app.shown.filter((number) => cards[number].card.offsetTop === top).length;
}

// The large view

function openLarge(number) {
  app.current = number;
  if (!byId("large").open) byId("large").showModal();
  showLarge();
  updateAnswers();
}

function showLarge() {
  const one = suggestions[app.current];
  byId("large-text").textContent = `${data.kinds[one.kind]}, ${percent(one.correction.score)}: ${one.correction.reason}. ${one.correction.image}`;
  byId("large-canvas").setAttribute("aria-label", one.correction.image);
  byId("large-broken").textContent = one.broken;
  byId("large-broken").hidden = !one.broken;
  byId("original").hidden = one.original === null;
  if (one.original !== null) byId("original").href = data.base + one.original;
  else byId("original").removeAttribute("href");
  drawLarge();
}

const drawLarge = () => byId("large").open && drawCut(byId("large-canvas"), suggestions[app.current], app.showBoxes);

function updateLarge() {
  for (const value of ["accept", "reject"]) byId(`large-${value}`).setAttribute("aria-pressed", String(answerOf(app.current) === value));
}

byId("large").addEventListener("close", () => {
  refresh();
  moveTo(app.current);
});
byId("close-large").addEventListener("click", () => byId("large").close());
byId("previous").addEventListener("click", () => turnBy(-1));
byId("next").addEventListener("click", () => turnBy(1));
byId("large-accept").addEventListener("click", () => answer(app.current, "accept", false));
byId("large-reject").addEventListener("click", () => answer(app.current, "reject", false));
new ResizeObserver(drawLarge).observe(byId("large-stage"));
new ResizeObserver(() => app.shown.forEach(drawIfSeen)).observe(byId("cards"));

function drawIfSeen(number) {
  const edge = cards[number].card.getBoundingClientRect();
  if (edge.bottom > -600 && edge.top < innerHeight + 600) drawCard(number);
}

// The file

function correctionsFile() {
  const corrections = suggestions.filter((_, number) => answerOf(number) === "accept").map((one) => (one.chosen ? { ...one.correction, new_class: one.chosen } : one.correction));
  return { format: data.format, kind: data.fileKind, fingerprint: data.fingerprint, data: data.source, corrections };
}

function download() {
  if (byId("download").disabled) return;
  const address = URL.createObjectURL(new Blob([JSON.stringify(correctionsFile(), null, 1) + "\n"], { type: "application/json" }));
  const link = make("a", { href: address, download: data.fileName });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

// Filters, buttons and keys

function fillSelect(select, all, names) {
  select.replaceChildren(make("option", { value: "", textContent: all }), ...names.map(([value, text]) => make("option", { value, textContent: text })));
  select.addEventListener("change", refresh);
}
const countOf = (has) => suggestions.filter(has).length;
fillSelect(byId("kind"), "all kinds", Object.entries(data.kinds).map(([kind, name]) => [kind, name, countOf((one) => one.kind === kind)]).filter(([, , number]) => number).map(([kind, name, number]) => [kind, `${name} (${number})`]));
const classNames = [...new Set(suggestions.flatMap(({ correction: c }) => [c.annotation_class, c.new_class]).filter(Boolean))].sort();
fillSelect(byId("class"), "all classes", classNames.map((name) => [name, shorten(name, 40)]));
byId("state").addEventListener("change", refresh);
byId("reset").addEventListener("click", () => {
  byId("kind").value = byId("class").value = "";
  byId("state").value = "all";
  refresh();
});
function flipBoxes() {
  app.showBoxes = !app.showBoxes;
  byId("boxes").setAttribute("aria-pressed", String(app.showBoxes));
  app.shown.forEach(drawIfSeen);
  drawLarge();
}
byId("boxes").addEventListener("click", flipBoxes);
byId("download").addEventListener("click", download);
byId("open-help").addEventListener("click", () => byId("help").showModal());
byId("close-help").addEventListener("click", () => byId("help").close());
byId("note").textContent = data.note;
byId("note").hidden = !data.note;

const KEYS = {
  a: () => answer(app.current, "accept", true), r: () => answer(app.current, "reject", true), u: () => answer(app.current, "", false),
  j: () => turnBy(1), k: () => turnBy(-1), ArrowRight: () => turnBy(1), ArrowLeft: () => turnBy(-1),
  ArrowDown: () => turnBy(byId("large").open ? 1 : columns()), ArrowUp: () => turnBy(byId("large").open ? -1 : -columns()),
  b: flipBoxes, d: download, o: () => byId("large").open && !byId("original").hidden && byId("original").click(),
  "?": () => byId("help").showModal(), Enter: () => byId("large").open || openLarge(app.current),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open || event.target.matches("select")) return;
  if (event.key === "Enter" && event.target.matches("button, a")) return;
  const act = app.shown.length && KEYS[event.key];
  if (!act) return;
  act();
  event.preventDefault();
});

refresh();
