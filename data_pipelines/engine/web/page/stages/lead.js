// The lead's page: progress, people, skipped tasks, invitations.

import { get, post } from "../api.js";
import { element, say } from "../parts.js";

export async function lead(main) {
  const [status, people, skipped] = await Promise.all([get("/api/status"), get("/api/people"), get("/api/skipped")]);
  const page = element("div", { className: "page" });
  main.replaceChildren(page);

  const table = (heads, rows) =>
    element(
      "table",
      {},
      element("tr", {}, ...heads.map((head) => element("th", {}, head))),
      ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell instanceof Node ? cell : `${cell}`)))),
    );
  const states = ["waiting", "open", "done", "rejected", "skipped"];
  page.append(
    element("h2", {}, "Progress"),
    element("p", {}, `${status.photos} photos, ${status.objects} objects, ${status.candidates} candidates; ${status.decisions_last_hour} decisions in the last hour, ${status.leased} tasks held`),
    table(["stage", ...states], Object.entries(status.tasks).map(([stage, counts]) => [stage, ...states.map((state) => counts[state] ?? 0)])),
    element("h2", {}, "Generators"),
    table(["generator", "shown", "won"], Object.entries(status.sources).map(([name, counts]) => [name, counts.shown, counts.won])),
    element("h2", {}, "People"),
    table(
      ["name", "role", "decisions", "median s", "left", "equal", "mean rating", "compared", "agrees", "to look at"],
      people.map((one) => [one.name, one.role, one.decisions, one.median_seconds ?? "", one.left ?? "", one.equal ?? "", one.mean_rating ?? "", one.compared ?? 0, one.agreement ?? "", one.remarks.join(", ")]),
    ),
    element("h2", {}, "Skipped"),
    table(["task", "stage", "photo", ""], skipped.map((one) => [
      one.task, one.stage, one.photo,
      element("button", { onclick: async () => { await post(`/api/tasks/${one.task}/requeue`); lead(main); } }, "open again"),
    ])),
    element("h2", {}, "Invite"),
  );
  const name = element("input", { type: "text", placeholder: "name" });
  const role = element("select", {}, ...["annotator", "artist", "lead"].map((word) => element("option", {}, word)));
  const link = element("p", {});
  page.append(
    element("div", { className: "row" }, name, role, element("button", {
      onclick: async () => {
        try {
          const made = await post("/api/people", { name: name.value, role: role.value });
          link.textContent = new URL(made.link, location.href).href;
        } catch (error) {
          say(error.message);
        }
      },
    }, "make a link")),
    link,
  );
  return () => {};
}
