// Pieces of pages.

import { picture } from "./api.js";

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  // Text is text, never markup.
  made.append(...children);
  return made;
}

export function say(text) {
  document.getElementById("message").textContent = text;
}

// The photo with the object's outline.
export async function photoCanvas(photo) {
  const canvas = element("canvas", { width: photo.width, height: photo.height });
  const context = canvas.getContext("2d");
  context.drawImage(await picture(photo.image), 0, 0);
  if (photo.mask) {
    const outline = await outlineOf(photo.mask, photo.width, photo.height);
    context.drawImage(outline, 0, 0);
  }
  return canvas;
}

export async function maskPixels(digest, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(await picture(digest), 0, 0);
  return context.getImageData(0, 0, width, height);
}

async function outlineOf(digest, width, height) {
  const { data } = await maskPixels(digest, width, height);
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[4 * (y * width + x)] > 127;
  const drawn = new ImageData(width, height);
  const reach = Math.max(1, Math.round(width / 300));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = 4 * (y * width + x);
      if (!inside(x, y)) {
        drawn.data[at + 3] = 110; // the rest is dimmed
        continue;
      }
      const edge = !inside(x - reach, y) || !inside(x + reach, y) || !inside(x, y - reach) || !inside(x, y + reach);
      if (edge) drawn.data.set([255, 190, 40, 255], at);
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(drawn, 0, 0);
  return canvas;
}

// Keys of a stage; returns what takes them off again.
export function keys(actions) {
  const listen = (event) => {
    if (event.target.matches("input, textarea") || event.repeat) return;
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };
  addEventListener("keydown", listen);
  return () => removeEventListener("keydown", listen);
}
