// Stage 2: a chain of choices between two turntables, then a rating; and blind comparisons.

import { element, keys, photoCanvas } from "../parts.js";
import { Panes, candidate } from "../scene.js";

const RATINGS = 5;

export async function chain(main, task, decided) {
  const view = task.view;
  const pair = view.left ? [view.left, view.right] : [view.winner];
  const holder = element("div", { className: "view" });
  const side = element("div", { className: "side" }, await photoCanvas(task.photo));
  main.replaceChildren(side, holder);
  const panes = new Panes(holder, pair.length);
  panes.show(await Promise.all(pair.map((one) => candidate(one.mesh, one.suffix))));
  // while the person looks, the next challenger is loaded
  for (const one of view.after ?? []) candidate(one.mesh, one.suffix);
  const remove = view.left
    ? choose(side, holder, task, decided)
    : rate(side, task, decided);
  holder.dataset.ready = "1";
  return () => {
    remove();
    panes.stop();
  };
}

function choose(side, holder, task, decided) {
  const { view } = task;
  const kind = task.stage === "comparison" ? "vote" : "choice";
  const answer = (word) =>
    decided(kind, { left: view.left.id, right: view.right.id, answer: word });
  const button = (word, key, label) =>
    element("button", { className: "big", id: word, onclick: () => answer(word) }, `${label} `, element("kbd", {}, key));
  holder.append(
    element("div", { className: "panes" }, button("left", "←", "left"), button("equal", "↓", "equal"), button("right", "→", "right")),
  );
  side.append(
    element("p", {}, "Which one is the outlined object? Look at the shape from all sides."),
    element("p", {}, view.steps ? `comparison ${view.step + 1} of ${view.steps}` : "blind comparison"),
  );
  return keys({
    ArrowLeft: () => answer("left"),
    ArrowRight: () => answer("right"),
    ArrowDown: () => answer("equal"),
  });
}

function rate(side, task, decided) {
  const { winner, rating_max: most } = task.view;
  const send = (value) => decided("rating", { winner: winner.id, value });
  const row = element("div", { className: "row" });
  const actions = {};
  for (let number = 0; number <= RATINGS; number++) {
    const value = (most * number) / RATINGS;
    row.append(element("button", { className: "big", id: `rate-${number}`, onclick: () => send(value) }, `${number}`));
    actions[`${number}`] = () => send(value);
  }
  side.append(
    element("p", {}, "How good is the one that is left? Keys 0 to 5: 0 is useless, an artist makes it anew; 3 is the object; 5 could be a scan of it."),
    row,
  );
  return keys(actions);
}
