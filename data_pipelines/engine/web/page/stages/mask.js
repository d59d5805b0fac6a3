// Stage 1: the objects of a photo and their masks, by brush, polygon or clicks for a segmenter.

import { get, picture, post, upload } from "../api.js";
import { element, keys, maskPixels, say } from "../parts.js";

const COLOURS = [[255, 190, 40], [80, 200, 255], [255, 100, 160], [120, 230, 120], [200, 140, 255]];

export async function mask(main, task, decided) {
  const { photo, view } = task;
  const image = await picture(photo.image);
  const { width, height } = photo;
  const canvas = element("canvas", { width, height, id: "paint" });
  const context = canvas.getContext("2d");
  const objects = [];
  for (const one of view.objects) objects.push(layer(width, height, await maskPixels(one.mask, width, height)));
  if (!objects.length) objects.push(layer(width, height));
  let current = 0;
  let tool = "brush";
  let size = Math.max(4, Math.round(width / 40));
  let polygon = [];
  let clicks = [];
  const { segmenter } = await get("/api/me");
  const undone = [];

  const list = element("div", { className: "row", id: "objects" });
  const tools = element("div", { className: "row" });
  const side = element(
    "div",
    { className: "side" },
    element("p", {}, "Paint each object that should be made. Every object has a mask of its own, of what is seen of it."),
    list,
    tools,
    element(
      "div",
      { className: "row" },
      element("button", { id: "undo", onclick: undo }, "undo ", element("kbd", {}, "z")),
      element("button", { id: "smaller", onclick: () => (size = Math.max(1, size * 0.7)) }, "−"),
      element("button", { id: "larger", onclick: () => (size = size * 1.4) }, "+"),
    ),
    element("button", { id: "save", className: "big", onclick: save }, "save ", element("kbd", {}, "Enter")),
  );
  main.replaceChildren(side, element("div", { className: "paint" }, canvas));

  const offered = [["brush", "b"], ["erase", "e"], ["polygon", "p"]];
  if (segmenter) offered.push(["click", "c"]);
  for (const [name, key] of offered) {
    tools.append(element("button", { id: name, onclick: () => choose(name) }, `${name} `, element("kbd", {}, key)));
  }
  function choose(name) {
    tool = name;
    polygon = [];
    clicks = [];
    show();
  }
  function show() {
    context.drawImage(image, 0, 0);
    objects.forEach((one, number) => {
      context.globalAlpha = number === current ? 0.55 : 0.25;
      context.drawImage(one.tinted(COLOURS[number % COLOURS.length]), 0, 0);
    });
    context.globalAlpha = 1;
    if (polygon.length) {
      context.strokeStyle = "white";
      context.beginPath();
      polygon.forEach(([x, y]) => context.lineTo(x, y));
      context.stroke();
    }
    for (const button of tools.children) button.classList.toggle("on", button.id === tool);
    list.replaceChildren(
      ...objects.map((_, number) =>
        element("button", { className: number === current ? "on" : "", onclick: () => { current = number; show(); } }, `object ${number + 1}`)),
      element("button", { id: "add", onclick: () => { objects.push(layer(width, height)); current = objects.length - 1; show(); } }, "+ object"),
    );
  }
  function at(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }
  function keep() {
    undone.push([current, objects[current].copy()]);
    if (undone.length > 30) undone.shift();
  }
  function undo() {
    const last = undone.pop();
    if (!last) return;
    objects[last[0]].restore(last[1]);
    show();
  }
  let painting = false;
  let previous = null;
  // clicks say where the object is, with the right button where it is not
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  async function segment(event) {
    const [x, y] = at(event);
    clicks.push([x, y, event.button === 2 ? 0 : 1]);
    try {
      const { digest } = await post(`/api/tasks/${task.task}/segment`, { points: clicks });
      keep();
      objects[current].replace(await maskPixels(digest, width, height));
      say("");
    } catch (error) {
      say(error.message);
    }
    show();
  }
  canvas.addEventListener("pointerdown", (event) => {
    if (tool === "click") {
      segment(event);
      return;
    }
    canvas.setPointerCapture(event.pointerId);
    if (tool === "polygon") {
      polygon.push(at(event));
      show();
      return;
    }
    keep();
    painting = true;
    previous = at(event);
    objects[current].stroke(previous, previous, size, tool === "erase");
    show();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!painting) return;
    const next = at(event);
    objects[current].stroke(previous, next, size, tool === "erase");
    previous = next;
    show();
  });
  canvas.addEventListener("pointerup", () => (painting = false));
  canvas.addEventListener("dblclick", () => {
    if (tool !== "polygon" || polygon.length < 3) return;
    keep();
    objects[current].fill(polygon);
    polygon = [];
    show();
  });
  async function save() {
    const masks = [];
    for (const one of objects) {
      if (one.empty()) continue;
      masks.push(await upload("mask", await one.png()));
    }
    decided("masks", { masks });
  }
  const remove = keys({
    b: () => choose("brush"),
    e: () => choose("erase"),
    p: () => choose("polygon"),
    ...(segmenter ? { c: () => choose("click") } : {}),
    z: undo,
    Enter: save,
  });
  show();
  canvas.dataset.ready = "1";
  return remove;
}

// A mask that is painted on: opaque where there is object.
function layer(width, height, pixels) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const replace = (grey) => {
    for (let at = 0; at < grey.data.length; at += 4) grey.data[at + 3] = grey.data[at] > 127 ? 255 : 0;
    context.putImageData(grey, 0, 0);
  };
  if (pixels) replace(pixels);
  const read = () => context.getImageData(0, 0, width, height);
  return {
    replace,
    copy: read,
    restore: (kept) => context.putImageData(kept, 0, 0),
    empty: () => !read().data.some((value, at) => at % 4 === 3 && value > 127),
    stroke([x0, y0], [x1, y1], size, erase) {
      context.globalCompositeOperation = erase ? "destination-out" : "source-over";
      context.lineCap = "round";
      context.lineWidth = size;
      context.strokeStyle = "white";
      context.beginPath();
      context.moveTo(x0, y0);
      context.lineTo(x1, y1 + 0.01);
      context.stroke();
    },
    fill(corners) {
      context.globalCompositeOperation = "source-over";
      context.fillStyle = "white";
      context.beginPath();
      corners.forEach(([x, y]) => context.lineTo(x, y));
      context.closePath();
      context.fill();
    },
    tinted([r, g, b]) {
      const shown = new OffscreenCanvas(width, height);
      const to = shown.getContext("2d");
      to.drawImage(canvas, 0, 0);
      to.globalCompositeOperation = "source-in";
      to.fillStyle = `rgb(${r},${g},${b})`;
      to.fillRect(0, 0, width, height);
      return shown;
    },
    async png() {
      const flat = new OffscreenCanvas(width, height);
      const to = flat.getContext("2d");
      to.fillStyle = "black";
      to.fillRect(0, 0, width, height);
      to.drawImage(canvas, 0, 0);
      return flat.convertToBlob({ type: "image/png" });
    },
  };
}
