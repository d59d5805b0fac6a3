// Calls of the API. A decision keeps its key until it is acknowledged, so that a lost answer, a
// server that restarts or a second click store it once.

const NAME = "sam3d-annotator";

export class Refused extends Error {
  constructor(status, body) {
    super(typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail ?? body));
    this.status = status;
    this.reason = body.reason ?? "";
  }
}

export function localName() {
  return localStorage.getItem(NAME) ?? "";
}

export function setLocalName(name) {
  localStorage.setItem(NAME, name);
}

function headers(more = {}) {
  const name = localName();
  return name ? { "x-annotator": encodeURIComponent(name), ...more } : more;
}

async function answered(response) {
  if (response.ok) return response;
  const text = await response.text();
  let body = { detail: text };
  try {
    body = JSON.parse(text);
  } catch {
    // not ours, a proxy's: shown as it is
  }
  throw new Refused(response.status, body);
}

export async function get(path) {
  return (await answered(await fetch(path, { headers: headers() }))).json();
}

export async function bytes(path) {
  return (await answered(await fetch(path, { headers: headers() }))).arrayBuffer();
}

export async function post(path, body) {
  const sent = { method: "POST", headers: headers({ "content-type": "application/json" }) };
  if (body !== undefined) sent.body = JSON.stringify(body);
  return (await answered(await fetch(path, sent))).json();
}

export async function upload(kind, content) {
  const sent = { method: "POST", headers: headers(), body: content };
  return (await (await answered(await fetch(`/api/uploads/${kind}`, sent))).json()).digest;
}

// Sends a decision until it is acknowledged or refused; `waiting` is told while nobody answers.
export async function decide(task, kind, payload, milliseconds, waiting) {
  const key = crypto.randomUUID();
  const body = { key, epoch: task.epoch, kind, payload, milliseconds };
  for (let pause = 250; ; pause = Math.min(2 * pause, 8000)) {
    try {
      return await post(`/api/tasks/${task.task}/decisions`, body);
    } catch (error) {
      if (error instanceof Refused && error.status < 500) throw error;
      waiting(`not stored yet, trying again: ${error.message}`);
      await new Promise((done) => setTimeout(done, pause));
    }
  }
}

const kept = new Map();

// A kept file by its digest; asked for once.
export function file(digest) {
  if (!kept.has(digest)) {
    const found = bytes(`/api/files/${digest}`);
    found.catch(() => kept.delete(digest));
    kept.set(digest, found);
  }
  return kept.get(digest);
}

// A picture of a kept file.
export async function picture(digest) {
  return createImageBitmap(new Blob([await file(digest)]));
}
