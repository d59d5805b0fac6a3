// The page: who works, which task, which stage.

import { Refused, decide, get, localName, post, setLocalName } from "./api.js";
import { element, say } from "./parts.js";
import { artist } from "./stages/artist.js";
import { chain } from "./stages/chain.js";
import { lead } from "./stages/lead.js";
import { mask } from "./stages/mask.js";
import { pose } from "./stages/pose.js";

const STAGES = { mask, shape: chain, texture: chain, comparison: chain, artist, pose };
const main = document.getElementById("main");
const wanted = new URLSearchParams(location.search).get("stages") ?? "";
const EMPTY_SECONDS = 5; // between two looks for new tasks
let leave = () => {};
let busy = false;

async function work() {
  leave();
  leave = () => {};
  const task = await get(`/api/next?stages=${encodeURIComponent(wanted)}`);
  document.getElementById("stage").textContent = task.stage ?? "";
  document.getElementById("progress").textContent = task.task ? `task ${task.task}: ${task.photo.name}` : "";
  if (task.task === null) {
    main.replaceChildren(element("div", { className: "page", id: "nothing" }, "Nothing is left to do. This page looks again by itself."));
    const timer = setTimeout(() => guarded(work), 1000 * EMPTY_SECONDS);
    leave = () => clearTimeout(timer);
    return;
  }
  const began = performance.now();
  const decided = (kind, payload) =>
    guarded(async () => {
      const milliseconds = Math.round(performance.now() - began);
      await decide(task, kind, payload, milliseconds, say);
      await work();
    });
  leave = await STAGES[task.stage](main, task, decided);
  document.body.dataset.task = task.task;
  document.body.dataset.step = task.view.step ?? 0;
  document.body.dataset.ready = `${task.task}-${task.stage}-${task.view.step ?? 0}`;
}

// One thing at a time; what is refused is told, and the task is loaded again where it moved on.
async function guarded(action) {
  if (busy) return;
  busy = true;
  try {
    say("");
    await action();
  } catch (error) {
    say(error.message);
    const moved = error instanceof Refused && ["lease_lost", "closed", "unknown_task"].includes(error.reason);
    if (moved) setTimeout(() => guarded(work), 1500);
  } finally {
    busy = false;
  }
}

async function skip() {
  const task = document.body.dataset.task;
  if (task) await post(`/api/tasks/${task}/release?skip=true`);
  await work();
}

async function start() {
  let me;
  try {
    me = await get("/api/me");
  } catch (error) {
    main.replaceChildren(element("div", { className: "page" }, error.message));
    return;
  }
  // whoever is at the machine says a name
  if (me.name === "local" && !localName()) {
    const name = element("input", { type: "text", id: "name", placeholder: "your name" });
    const go = () => {
      setLocalName(name.value.trim() || "local");
      location.reload();
    };
    name.addEventListener("keydown", (event) => event.key === "Enter" && go());
    main.replaceChildren(element("div", { className: "page" }, "Who works here? ", name, " ", element("button", { id: "go", onclick: go }, "begin")));
    return;
  }
  document.getElementById("who").append(
    `${me.name} (${me.role}) `,
    element("button", { id: "skip", onclick: () => guarded(skip) }, "skip"),
  );
  document.getElementById("lead-link").hidden = !me.leads;
  const route = () =>
    guarded(async () => {
      if (location.hash !== "#lead") return work();
      leave();
      leave = await lead(main);
    });
  addEventListener("hashchange", route);
  await route();
}

start();
