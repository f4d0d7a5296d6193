// The grid of thumbnails. Only the cells in sight exist, so 5,000 images scroll as smoothly as fifty.

const CELL_SIZES = [112, 168, 232, 320]; // widths of a thumbnail in pixels, about
const GAP = 10, CAPTION = 44, ASPECT = 0.75;

/** A grid in `scroller`; `open(image)` is called for a chosen image. */
function makeGrid(app, scroller, place, open) {
  const grid = { images: [], cells: new Map(), spare: [], columns: 1, width: 0, height: 0, cursor: 0, size: 2, frame: 0 };

  /** Shows other images, or the same ones with other boxes. */
  grid.show = (images) => {
    grid.images = images;
    grid.cursor = Math.min(grid.cursor, Math.max(0, images.length - 1));
    grid.layOut();
  };

  /** Measures the columns and places the cells anew. */
  grid.layOut = () => {
    const wide = scroller.clientWidth - GAP;
    grid.columns = Math.max(wide < 420 ? 2 : 1, Math.floor(wide / (CELL_SIZES[grid.size] + GAP)));
    if (wide < 420) grid.columns = [4, 3, 2, 1][grid.size];
    grid.width = Math.floor(wide / grid.columns) - GAP;
    grid.height = Math.round(grid.width * ASPECT) + CAPTION;
    place.style.height = `${Math.ceil(grid.images.length / grid.columns) * (grid.height + GAP) + GAP}px`;
    const hadFocus = place.contains(document.activeElement);
    for (const cell of grid.cells.values()) retire(cell);
    grid.cells.clear();
    grid.render();
    const cell = grid.cells.get(grid.cursor);
    if (hadFocus && cell) cell.button.focus({ preventScroll: true });
  };

  /** Makes the cells that came into sight, and puts those aside that left it. */
  grid.render = () => {
    const row = grid.height + GAP;
    const first = Math.max(0, Math.floor(scroller.scrollTop / row) - 1) * grid.columns;
    const last = Math.min(grid.images.length, (Math.ceil((scroller.scrollTop + scroller.clientHeight) / row) + 1) * grid.columns);
    for (const [index, cell] of grid.cells) {
      if (index >= first && index < last) continue;
      retire(cell);
      grid.cells.delete(index);
    }
    for (let index = last - 1; index >= first; index--) {
      if (grid.cells.has(index)) continue;
      const cell = fill(index), next = grid.cells.get(index + 1);
      place.insertBefore(cell.button, next ? next.button : null); // read in order
      grid.cells.set(index, cell);
    }
  };

  /** Moves the cursor, brings it into sight, and focuses its cell. */
  grid.moveTo = (index, focus = true) => {
    if (!grid.images.length) return;
    const old = grid.cells.get(grid.cursor);
    if (old) old.button.tabIndex = -1;
    grid.cursor = Math.min(Math.max(index, 0), grid.images.length - 1);
    const row = grid.height + GAP, top = Math.floor(grid.cursor / grid.columns) * row;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    if (top + row + GAP > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + row + GAP - scroller.clientHeight;
    grid.render();
    const cell = grid.cells.get(grid.cursor);
    cell.button.tabIndex = 0;
    if (focus) cell.button.focus({ preventScroll: true });
  };

  function retire(cell) {
    cell.button.hidden = true;
    cell.img.removeAttribute("src");
    grid.spare.push(cell);
  }

  function fill(index) {
    const cell = grid.spare.pop() || makeCell();
    const image = grid.images[index], { data } = app;
    const column = index % grid.columns, row = Math.floor(index / grid.columns);
    const { button } = cell;
    cell.index = index;
    button.hidden = false;
    button.tabIndex = index === grid.cursor ? 0 : -1;
    button.style.cssText = `width:${grid.width}px;height:${grid.height}px;transform:translate(${GAP + column * (grid.width + GAP)}px,${GAP + row * (grid.height + GAP)}px)`;
    button.setAttribute("aria-setsize", grid.images.length);
    button.setAttribute("aria-posinset", index + 1);
    button.dataset.image = image;
    const facts = factsOf(app, image);
    button.setAttribute("aria-label", `${data.names[image]}: ${facts.map((fact) => fact.words).join(", ")}`);
    cell.name.textContent = data.names[image];
    cell.facts.replaceChildren(...facts.map(makeFact));
    const isBroken = app.broken.has(image);
    cell.broken.hidden = !isBroken;
    cell.broken.textContent = isBroken ? shorten(app.broken.get(image), 90) : "";
    cell.img.hidden = isBroken;
    if (!isBroken) cell.img.src = imageAddress(data, "thumbs", image);
    const height = grid.height - CAPTION;
    const scale = Math.min(grid.width / data.widths[image], height / data.heights[image]);
    const view = { scale, left: (grid.width - data.widths[image] * scale) / 2, top: (height - data.heights[image] * scale) / 2 };
    cell.frame.style.height = `${height}px`;
    drawBoxes(sized(cell.canvas, grid.width, height), boxesToDraw(app, image), view, 0.8);
    return cell;
  }

  function makeCell() {
    const button = make("button", { type: "button", className: "cell" });
    button.setAttribute("role", "listitem");
    const cell = {
      button, frame: make("span", { className: "frame" }), img: make("img", { alt: "", decoding: "async", draggable: false }),
      canvas: make("canvas"), broken: make("span", { className: "broken" }),
      name: make("span", { className: "name" }), facts: make("span", { className: "facts" }), index: 0,
    };
    cell.frame.append(cell.img, cell.canvas, cell.broken);
    button.append(cell.frame, cell.name, cell.facts);
    button.addEventListener("click", () => {
      grid.moveTo(cell.index);
      open(grid.images[cell.index]);
    });
    return cell;
  }

  scroller.addEventListener("scroll", () => {
    if (!grid.frame) grid.frame = requestAnimationFrame(() => ((grid.frame = 0), grid.render()));
  }, { passive: true });
  new ResizeObserver(() => grid.layOut()).observe(scroller);
  return grid;
}

/** An image in one line: its objects and its errors, or its boxes. */
function factsOf(app, image) {
  const { data, choices } = app, matcher = app.matchers[choices.judge];
  const facts = data.notes ? [{ words: data.notes[image][0], className: "" }] : [];
  const plural = (n, word, more = word + "s") => `${n} ${n === 1 ? word : more}`;
  if (data.annotations) {
    const words = data.annotations.known[image] ? plural(countObjects(data, image), "object") : "not annotated";
    facts.push({ words, className: "" });
  }
  if (!matcher) return facts;
  if (!matcher.layer.known[image]) return [...facts, { words: "not predicted", className: "quiet" }];
  if (!isJudged(matcher, image)) {
    return [...facts, { words: plural(countShown(matcher.layer, image, choices.score), "box", "boxes"), className: "" }];
  }
  const errors = countErrors(matcher, image);
  return [...facts, { words: errors ? plural(errors, "error") : "no error", className: errors ? "bad" : "good" }];
}

const makeFact = (fact) => make("span", { className: `fact ${fact.className}`, textContent: fact.words });
