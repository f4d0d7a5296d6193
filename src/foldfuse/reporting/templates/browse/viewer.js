// One image in full size: panes that zoom and move together, and the list of its boxes.

const MAX_SCALE = 40, ZOOM_STEP = 1.35;

/** The viewer in the dialog; `close()` is called when it was closed. */
function makeViewer(app, dialog, close) {
  const panes = document.getElementById("panes"), list = document.getElementById("panel-list");
  const viewer = { zoom: 1, x: 0.5, y: 0.5, panes: [], picked: "", image: -1, bitmap: null }; // x, y: the image's point in the middle
  const pointers = new Map();
  let moved = 0, pinch = 0;

  viewer.isOpen = () => dialog.open;

  /** Shows an image; zoom and place stay where the image is the same. */
  viewer.show = (image) => {
    const isOther = image !== viewer.image;
    if (isOther) Object.assign(viewer, { image, zoom: 1, x: 0.5, y: 0.5, picked: "", bitmap: null });
    if (!dialog.open) dialog.showModal();
    if (isOther && !app.broken.has(image)) {
      const bitmap = new Image();
      bitmap.onload = () => {
        if (viewer.image !== image) return;
        viewer.bitmap = bitmap;
        viewer.draw();
      };
      bitmap.src = imageAddress(app.data, "previews", image);
      preload(1);
      preload(-1);
    }
    const place = app.images.indexOf(image), address = originalAddress(app.data, image);
    const original = document.getElementById("original");
    original.hidden = !address;
    if (address) original.href = address;
    else original.removeAttribute("href");
    document.getElementById("viewer-name").textContent = app.data.names[image];
    document.getElementById("viewer-place").textContent = place < 0 ? "outside the filters" : `${place + 1} of ${app.images.length.toLocaleString("en")}`;
    for (const [id, on] of [["sides", app.choices.sides], ["labels", app.choices.labels], ["colours", app.choices.byClass]]) {
      document.getElementById(id).setAttribute("aria-pressed", String(on));
    }
    makePanes();
    listBoxes();
    viewer.draw();
  };

  viewer.hide = () => {
    viewer.image = -1;
    pointers.clear();
    if (dialog.open) dialog.close();
  };

  /** Zooms by a factor around a point of the first pane (in its pixels), or around the middle. */
  viewer.zoomBy = (factor, at = null) => {
    const size = sizeOf(viewer.panes[0]), before = viewOf(size);
    if (!(before.scale > 0)) return; // a window without room for a pane
    const zoom = Math.min(Math.max(viewer.zoom * factor, 1), MAX_SCALE);
    const point = at || { x: size.width / 2, y: size.height / 2 };
    const x = (point.x - before.left) / before.scale, y = (point.y - before.top) / before.scale;
    viewer.zoom = zoom;
    const scale = fitOf(size) * zoom;
    viewer.x = (x - (point.x - size.width / 2) / scale) / app.data.widths[viewer.image];
    viewer.y = (y - (point.y - size.height / 2) / scale) / app.data.heights[viewer.image];
    viewer.draw();
  };

  viewer.fit = () => {
    Object.assign(viewer, { zoom: 1, x: 0.5, y: 0.5 });
    viewer.draw();
  };

  viewer.draw = () => {
    if (viewer.image < 0 || !dialog.open) return;
    keepInside();
    for (const pane of viewer.panes) {
      const size = sizeOf(pane), view = viewOf(size), context = sized(pane.canvas, size.width, size.height);
      const width = app.data.widths[viewer.image] * view.scale, height = app.data.heights[viewer.image] * view.scale;
      context.fillStyle = "#20262d";
      context.fillRect(view.left, view.top, width, height);
      context.imageSmoothingEnabled = view.scale < 6;
      context.imageSmoothingQuality = "high";
      if (viewer.bitmap) context.drawImage(viewer.bitmap, view.left, view.top, width, height);
      pane.boxes = boxesToDraw(app, viewer.image, pane.only);
      drawBoxes(context, pane.boxes, view);
      const picked = pane.boxes.filter((box) => box.id === viewer.picked);
      drawBoxes(context, picked.map((box) => ({ ...box, width: 4, isFaint: false, dash: [] })), view);
      if (app.choices.labels) drawLabels(context, app, pane.boxes.filter((box) => box.id !== viewer.picked), view, size);
      drawLabels(context, { ...app, data: { ...app.data, layers: [] } }, picked, view, size);
    }
  };

  function preload(step) {
    const other = app.images[app.images.indexOf(viewer.image) + step];
    if (other !== undefined && !app.broken.has(other)) new Image().src = imageAddress(app.data, "previews", other);
  }

  const sizeOf = (pane) => ({ width: pane.frame.clientWidth, height: pane.frame.clientHeight });
  const fitOf = (size) => Math.min(size.width / app.data.widths[viewer.image], size.height / app.data.heights[viewer.image]);

  function viewOf(size) {
    const scale = fitOf(size) * viewer.zoom;
    return {
      scale,
      left: size.width / 2 - viewer.x * app.data.widths[viewer.image] * scale,
      top: size.height / 2 - viewer.y * app.data.heights[viewer.image] * scale,
    };
  }

  /** Keeps the image in sight: what fits is centred, what does not fit reaches the edges. */
  function keepInside() {
    const size = sizeOf(viewer.panes[0]), scale = fitOf(size) * viewer.zoom;
    const inside = (middle, room, length) => (length <= room ? 0.5 : Math.min(Math.max(middle, room / 2 / length), 1 - room / 2 / length));
    viewer.x = inside(viewer.x, size.width, app.data.widths[viewer.image] * scale);
    viewer.y = inside(viewer.y, size.height, app.data.heights[viewer.image] * scale);
  }

  /** One pane with all layers, or a pane for each layer that is shown. */
  function makePanes() {
    const { data, choices } = app, names = layerNames(data);
    const places = choices.shown.flatMap((on, place) => (on && (place || data.annotations) ? [place] : []));
    const wanted = choices.sides && places.length ? places : [null];
    viewer.panes = wanted.map((only) => {
      const pane = { only, frame: make("div", { className: "pane" }), canvas: make("canvas"), boxes: [] };
      pane.canvas.setAttribute("role", "img");
      pane.canvas.setAttribute("aria-label", `${data.names[viewer.image]}, ${only === null ? "all shown layers" : names[only]}`);
      pane.frame.append(pane.canvas);
      if (only !== null) {
        const known = only === 0 ? data.annotations.known : data.layers[only - 1].known;
        const aside = known[viewer.image] ? "" : only ? " (not predicted)" : " (not annotated)";
        pane.frame.append(make("span", { className: "pane-name", textContent: names[only] + aside }));
      }
      if (app.broken.has(viewer.image)) pane.frame.append(make("span", { className: "broken", textContent: app.broken.get(viewer.image) }));
      return pane;
    });
    panes.dataset.count = viewer.panes.length;
    panes.replaceChildren(...viewer.panes.map((pane) => pane.frame));
  }

  /** The list of boxes beside the image: errors first, then by score. */
  function listBoxes() {
    const boxes = boxesToDraw(app, viewer.image).reverse();
    const facts = factsOf(app, viewer.image).map((fact) => fact.words);
    facts.push(`${app.data.widths[viewer.image]} × ${app.data.heights[viewer.image]} px`);
    if (app.data.notes) facts.push(app.data.notes[viewer.image][1]);
    document.getElementById("panel-text").textContent = facts.join(" · ");
    boxes.sort((a, b) => b.isError - a.isError || (b.score ?? -1) - (a.score ?? -1));
    list.replaceChildren(...boxes.filter((box) => !box.isFaint).map((box) => {
      const swatch = make("i", { className: "swatch" });
      swatch.style.setProperty("--swatch", box.colour);
      const name = make("span", { className: "box-name", textContent: app.data.classes[box.label] });
      const words = [box.words];
      if (box.other >= 0) words.push(`annotated as ${app.data.classes[box.other]}`);
      if (box.overlap) words.push(`IoU ${box.overlap.toFixed(2)}`);
      const many = app.data.layers.length > 1 && box.source !== "annotations" ? `${box.source}: ` : "";
      const about = make("span", { className: "soft", textContent: many + words.join(", ") });
      const score = make("span", { className: "score", textContent: box.score === null ? "" : box.score.toFixed(2) });
      const button = make("button", { type: "button" }, swatch, name, score, about);
      button.dataset.box = box.id;
      button.setAttribute("aria-pressed", String(box.id === viewer.picked));
      button.addEventListener("click", () => pick(box, true));
      return make("li", {}, button);
    }));
  }

  /** Marks a box; a second time takes the mark away. */
  function pick(box, isFromList = false) {
    viewer.picked = !box || viewer.picked === box.id ? "" : box.id;
    for (const button of list.querySelectorAll("button")) {
      const on = button.dataset.box === viewer.picked;
      button.setAttribute("aria-pressed", String(on));
      if (on && !isFromList) button.scrollIntoView({ block: "nearest" });
    }
    if (viewer.picked && isFromList) zoomOn(box);
    viewer.draw();
  }

  /** Brings a box into the middle, large enough to look at. */
  function zoomOn(box) {
    const b = box.boxes, at = box.at, size = sizeOf(viewer.panes[0]), fit = fitOf(size);
    const wanted = 0.45 * Math.min(size.width / b[at + 2], size.height / b[at + 3]) / fit;
    viewer.zoom = Math.min(Math.max(wanted, 1), 8);
    viewer.x = (b[at] + b[at + 2] / 2) / app.data.widths[viewer.image];
    viewer.y = (b[at + 1] + b[at + 3] / 2) / app.data.heights[viewer.image];
  }

  /** The smallest box under a point of a pane. */
  function boxAt(pane, x, y) {
    const view = viewOf(sizeOf(pane)), near = 4;
    const under = pane.boxes.filter((box) => {
      const [left, top, width, height] = placed(box, view);
      return !box.isFaint && x >= left - near && x <= left + width + near && y >= top - near && y <= top + height + near;
    });
    const area = (box) => box.boxes[box.at + 2] * box.boxes[box.at + 3];
    return under.sort((a, b) => area(a) - area(b))[0];
  }

  const placeOf = (event) => viewer.panes.findIndex((pane) => pane.frame.contains(event.target));
  /** The pane that a pointer went down on; panes may have been made anew since. */
  const paneAt = (place) => viewer.panes[Math.min(place, viewer.panes.length - 1)];
  const paneOf = (event) => viewer.panes.find((pane) => pane.frame.contains(event.target));
  const inPane = (pane, event) => {
    const edge = pane.frame.getBoundingClientRect();
    return { x: event.clientX - edge.left, y: event.clientY - edge.top };
  };

  panes.addEventListener("wheel", (event) => {
    const pane = paneOf(event);
    if (!pane) return;
    event.preventDefault();
    viewer.zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), inPane(pane, event));
  }, { passive: false });

  panes.addEventListener("pointerdown", (event) => {
    const place = placeOf(event);
    if (place < 0 || event.button) return;
    panes.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, place });
    if (pointers.size === 1) moved = 0;
    pinch = 0;
  });

  panes.addEventListener("pointermove", (event) => {
    const pointer = pointers.get(event.pointerId);
    if (!pointer) return;
    const dx = event.clientX - pointer.x, dy = event.clientY - pointer.y;
    [pointer.x, pointer.y] = [event.clientX, event.clientY];
    moved += Math.abs(dx) + Math.abs(dy);
    if (pointers.size === 2) {
      const [a, b] = [...pointers.values()];
      const distance = Math.hypot(a.x - b.x, a.y - b.y);
      if (pinch) viewer.zoomBy(distance / pinch, inPane(paneAt(pointer.place), { clientX: (a.x + b.x) / 2, clientY: (a.y + b.y) / 2 }));
      pinch = distance;
    } else if (moved > 4) {
      const scale = viewOf(sizeOf(paneAt(pointer.place))).scale;
      if (!(scale > 0)) return;
      viewer.x -= dx / scale / app.data.widths[viewer.image];
      viewer.y -= dy / scale / app.data.heights[viewer.image];
      viewer.draw();
    }
  });

  for (const name of ["pointerup", "pointercancel"]) {
    panes.addEventListener(name, (event) => {
      const pointer = pointers.get(event.pointerId);
      if (!pointer) return;
      pointers.delete(event.pointerId);
      pinch = 0;
      if (name === "pointerup" && moved <= 4 && !pointers.size) {
        const pane = paneAt(pointer.place), { x, y } = inPane(pane, event);
        pick(boxAt(pane, x, y));
      } else if (!pointers.size && viewer.zoom === 1 && event.pointerType === "touch") swipe(event);
    });
  }

  let swipeStart = 0;
  panes.addEventListener("pointerdown", (event) => (swipeStart = event.clientX));
  /** A finger drawn sideways over an image that fits turns to the next. */
  function swipe(event) {
    const distance = event.clientX - swipeStart;
    if (Math.abs(distance) > 60) app.turnBy(distance < 0 ? 1 : -1);
  }

  panes.addEventListener("dblclick", (event) => {
    const pane = [...viewer.panes].find((one) => {
      const edge = one.frame.getBoundingClientRect();
      return event.clientX >= edge.left && event.clientX <= edge.right && event.clientY >= edge.top && event.clientY <= edge.bottom;
    });
    if (!pane) return;
    if (viewer.zoom > 1) viewer.fit();
    else viewer.zoomBy(3, inPane(pane, event));
  });

  dialog.addEventListener("close", () => {
    if (viewer.image < 0) return;
    viewer.image = -1;
    pointers.clear();
    close();
  });
  document.getElementById("zoom-in").addEventListener("click", () => viewer.zoomBy(ZOOM_STEP));
  document.getElementById("zoom-out").addEventListener("click", () => viewer.zoomBy(1 / ZOOM_STEP));
  document.getElementById("zoom-fit").addEventListener("click", viewer.fit);
  document.getElementById("previous").addEventListener("click", () => app.turnBy(-1));
  document.getElementById("next").addEventListener("click", () => app.turnBy(1));
  document.getElementById("close-viewer").addEventListener("click", () => dialog.close());
  new ResizeObserver(() => viewer.draw()).observe(panes);
  return viewer;
}

/** The names of the layers of the list: annotations, then the predictions. */
const layerNames = (data) => ["Annotations", ...data.layers.map((layer) => layer.name)];
