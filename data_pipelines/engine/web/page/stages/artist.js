// Stage 2.5: an artist downloads the photo and brings a mesh.

import { file, upload } from "../api.js";
import { element, photoCanvas, say } from "../parts.js";
import { Panes, candidate } from "../scene.js";

export async function artist(main, task, decided) {
  const holder = element("div", { className: "view" });
  const link = element("a", { download: `${task.photo.name}.png`, textContent: "download the photo" });
  link.href = URL.createObjectURL(new Blob([await file(task.photo.image)]));
  const chosen = element("input", { type: "file", id: "file", accept: ".glb" });
  const send = element("button", { id: "save", className: "big", disabled: true }, "hand in");
  const side = element(
    "div",
    { className: "side" },
    await photoCanvas(task.photo),
    element("p", {}, "No candidate was good enough. Model the outlined object and hand in a .glb, y up; its position and size do not matter."),
    link,
    chosen,
    send,
  );
  main.replaceChildren(side, holder);
  const panes = new Panes(holder, 1);
  let digest = null;
  chosen.addEventListener("change", async () => {
    send.disabled = true;
    say("");
    try {
      digest = await upload("mesh", chosen.files[0]);
      panes.show([await candidate(digest, ".glb")]);
      send.disabled = false;
    } catch (error) {
      say(error.message);
    }
  });
  send.addEventListener("click", () => decided("upload", { mesh: digest }));
  holder.dataset.ready = "1";
  return () => panes.stop();
}
