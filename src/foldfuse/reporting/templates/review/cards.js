// A card for each suggestion: its cut with the annotation as it is and as proposed, the class to choose, and two buttons.

const COLOURS = { present: "#ffffff", gone: "#ff5a4a", proposed: "#58d0ff" };
const ACTIONS = { add: "Add", change: "Change", remove: "Remove" };

/** The image of a cut; it is decoded when it is first asked for. `draw` is called once it can be drawn. */
function bitmapOf(suggestion, draw) {
  if (!suggestion.jpeg) return null;
  if (!suggestion.bitmap) {
    suggestion.bitmap = new Image();
    suggestion.waiting = new Set();
    suggestion.bitmap.onload = () => {
      for (const one of suggestion.waiting) one();
      suggestion.waiting.clear();
    };
    suggestion.bitmap.src = "data:image/jpeg;base64," + suggestion.jpeg;
  }
  if (suggestion.bitmap.complete && suggestion.bitmap.naturalWidth) return suggestion.bitmap;
  suggestion.waiting.add(draw);
  return null;
}

/** Draws a cut to fill a canvas, with its boxes. */
function drawCut(canvas, suggestion, showBoxes) {
  const size = { width: canvas.clientWidth, height: canvas.clientHeight };
  if (!size.width || !size.height) return;
  const [left, top, width, height] = suggestion.window;
  const scale = Math.min(size.width / width, size.height / height);
  const view = { scale, left: (size.width - width * scale) / 2 - left * scale, top: (size.height - height * scale) / 2 - top * scale };
  const context = sized(canvas, size.width, size.height);
  const bitmap = bitmapOf(suggestion, () => drawCut(canvas, suggestion, showBoxes));
  context.imageSmoothingQuality = "high";
  if (bitmap) context.drawImage(bitmap, left * scale + view.left, top * scale + view.top, width * scale, height * scale);
  if (!showBoxes) return;
  const boxes = boxesOf(suggestion);
  drawBoxes(context, suggestion.others.map((sides) => ({ boxes: sides, at: 0, colour: COLOURS.present, dash: [], width: 1.2 })), view);
  drawBoxes(context, boxes.map((box) => ({ at: 0, dash: [], width: 2.5, ...box })), view);
  drawTags(context, boxes, view, size);
}

/** The class that an accepted suggestion gives: the one chosen by hand, else the proposed one; null where it gives none. */
const classOf = ({ chosen, correction: c }) => chosen || c.new_class || null;

/** The classes that may be chosen for a suggestion: all, but for the one that a wrongly classed box has. */
const classesOf = ({ kind, correction: c }, classes) => classes.filter((name) => kind !== "class" || name !== c.annotation_class);

/** The boxes of a suggestion with colour and name; those that shall be come last and lie on top. */
function boxesOf(suggestion) {
  const { correction: c, kind } = suggestion, boxes = [];
  const add = (sides, colour, name, dash = []) => sides && boxes.push({ boxes: sides, colour, name, dash });
  add(suggestion.kept, COLOURS.present, "stays");
  if (kind === "class") {
    add(suggestion.present, COLOURS.proposed, `${shorten(c.annotation_class, 18)} → ${shorten(classOf(suggestion), 18)}`);
  } else {
    add(suggestion.present, COLOURS.gone, shorten(c.annotation_class || "", 24), [6, 4]);
    add(suggestion.proposed, COLOURS.proposed, shorten(classOf(suggestion) || c.annotation_class || "", 24));
  }
  return boxes;
}

/** Writes the names above the boxes, or inside where there is no room. */
function drawTags(context, boxes, view, size) {
  context.font = "600 12px system-ui, sans-serif";
  context.textBaseline = "middle";
  const taken = [];
  for (const box of [...boxes].reverse()) {
    if (!box.name) continue;
    const [x, y, , height] = placed({ ...box, at: 0 }, view);
    const wide = context.measureText(box.name).width + 10;
    const left = Math.max(0, Math.min(x, size.width - wide));
    const free = [y - 18, y + height, y].map((t) => Math.max(0, Math.min(t, size.height - 18)));
    const top = free.find((t) => !taken.some(([l, s, w]) => left < l + w && l < left + wide && t < s + 18 && s < t + 18));
    if (top === undefined) continue;
    taken.push([left, top, wide]);
    context.fillStyle = box.colour;
    context.fillRect(left, top, wide, 18);
    context.fillStyle = "#0b1016";
    context.fillText(box.name, left + 5, top + 9.5);
  }
}

const percent = (score) => (score >= 0.995 ? ">99 %" : score < 0.005 ? "<1 %" : `${Math.round(score * 100)} %`);

/** A select of the class that an accepted suggestion gives. It is filled when it is used: there may be many classes and cards. */
function makeClassSelect(suggestion, classes, choose) {
  const fill = (names) => select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: shorten(name, 40) })));
  const select = make("select", { className: "choice" });
  fill([classOf(suggestion)]);
  select.addEventListener("focus", () => {
    fill(classesOf(suggestion, classes));
    select.value = classOf(suggestion);
  });
  select.addEventListener("change", () => choose(select.value));
  return select;
}

/** The element of a suggestion. `answer(number, value)`, `open(number)` and `choose(number, name)` are called by its controls. */
function makeCard(suggestion, number, { kinds, classes }, { answer, open, focus, choose }) {
  const { correction } = suggestion;
  const canvas = make("canvas"), cut = make("button", { type: "button", className: "cut" }, canvas);
  cut.setAttribute("aria-label", `Suggestion ${number + 1}, ${kinds[suggestion.kind]}, ${correction.image}: show it large`);
  cut.addEventListener("click", () => open(number));
  if (suggestion.broken) cut.append(make("span", { className: "broken", textContent: suggestion.broken }));
  const about = make("div", { className: "about" },
    make("span", { className: "kind", textContent: kinds[suggestion.kind] }),
    make("span", { className: "probability", title: "probability of an error", textContent: percent(correction.score) }),
    make("span", { className: "reason", textContent: `${ACTIONS[correction.action]}: ${correction.reason}.` }),
    make("span", { className: "image soft", textContent: correction.image }),
  );
  const buttons = ["accept", "reject"].map((value) => {
    const button = make("button", { type: "button", className: value, textContent: value === "accept" ? "Accept" : "Reject" });
    button.addEventListener("click", () => answer(number, value));
    return button;
  });
  const select = correction.new_class ? makeClassSelect(suggestion, classes, (name) => choose(number, name)) : null;
  const choice = select ? [make("label", { className: "field choice" }, make("span", { textContent: "Class" }), select)] : [];
  const card = make("article", { className: "card" }, cut, about, ...choice, make("div", { className: "answers" }, ...buttons));
  card.dataset.number = number;
  card.addEventListener("focusin", () => focus(number));
  return {
    card, canvas, cut,
    update: (value, isCurrent) => {
      card.dataset.answer = value || "";
      card.setAttribute("aria-current", String(isCurrent));
      if (select) select.value = classOf(suggestion);
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.className === value)));
    },
  };
}
