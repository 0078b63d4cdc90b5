// The page: what is drawn on an image becomes prompts, what is found is drawn over it and can be put
// right. The image goes to this service and nowhere else; its name does not leave the browser.

import { draw, zoom } from "./canvas.js";
import { consent, keep, readNotice, selections } from "./consent.js";
import { change, open, replace, take, undo } from "./edit.js";
import { canvasKey, move, pageKey, press, release } from "./input.js";
import { announce, refresh, say } from "./panel.js";
import { ask, download, find } from "./service.js";
import { $, floor, label, model, shown, takes, view, wanted, words } from "./state.js";

function showModel() {
  const one = model();
  $("match-row").hidden = !takes("box") || takes("text"); // for models that know examples only
  $("words-row").hidden = !takes("text");
  $("outputs").hidden = (one?.outputs.length ?? 0) < 2;
  $("outputs").replaceChildren(...(one?.outputs ?? []).map((name) => {
    const label = document.createElement("label"), box = document.createElement("input");
    const kept = view.consent?.given?.selections.outputs;
    Object.assign(box, { type: "checkbox", value: name, checked: kept ? kept.includes(name) : name === "box" });
    box.addEventListener("change", () => { if (!wanted().length) box.checked = true; keep(); });
    label.append(box, ` ${{ box: "boxes", mask: "masks" }[name] ?? name}`);
    return label;
  }));
  if (one && !wanted().length) $("outputs").querySelector("input").checked = true;
  if (one) Object.assign($("threshold"), { min: floor(one), value: one.min_score });
  if (!takes(view.tool === "point" ? "point" : "box")) view.tool = takes("box") || !takes("point") ? "example" : "point";
  refresh();
}

async function start() {
  const [info, models] = await Promise.all(["/v1/info", "/v1/models"].map(async (path) => (await ask(path)).json()));
  await consent("GET");
  const notice = await readNotice(), kept = view.consent.given?.selections ?? {};
  Object.assign(view, { info, models: models.models });
  const known = models.models.some(({ name }) => name === kept.model) ? kept.model : models.default;
  for (const { name } of models.models) $("model").add(new Option(name, name, false, name === known));
  const format = info.formats.includes(kept.format) ? kept.format : "coco";
  for (const name of info.formats) $("format").add(new Option(name, name, false, name === format));
  $("key-row").hidden = !info.api_key_required;
  showModel();
  if (kept.min_score !== undefined) $("threshold").value = kept.min_score;
  if (!models.models.length) say("No worker is running at the moment. Start one, then reload the page.", true);
  if (view.consent.given && view.consent.given.notice !== notice.version) {
    announce();
    await keep(); // it has been shown
  }
  refresh();
}

async function attempt(work) {
  const busy = (now) => { view.busy = now; $("form").setAttribute("aria-busy", now); refresh(); };
  busy(true);
  try {
    await work();
  } catch (error) {
    say(error.message, true);
  }
  busy(false);
}

const listen = (id, kind, act) => $(id).addEventListener(kind, act);
listen("file", "change", () => { open($("file").files[0]); $("file").value = ""; });
document.addEventListener("paste", (event) => open([...event.clipboardData.files].find(({ type }) => type.startsWith("image/"))));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") open(event.dataTransfer.files[0]);
  });
}
listen("canvas", "pointerdown", press);
listen("canvas", "pointermove", move);
listen("canvas", "pointerup", release);
listen("canvas", "pointercancel", release);
listen("canvas", "keydown", canvasKey);
document.addEventListener("keydown", pageKey);
new ResizeObserver(draw).observe($("frame"));
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => take(button.dataset.tool));
listen("label", "input", refresh);
listen("words", "input", () => {
  if (!view.prompts.length) $("label").value = words()[0]?.label ?? "object"; // so that a box joins its words
  refresh();
});
listen("model", "change", () => { showModel(); keep(); });
listen("format", "change", keep);
listen("threshold", "input", () => { if (!shown().includes(view.chosen) && !view.prompts.includes(view.chosen)) view.chosen = null; refresh(); });
listen("threshold", "change", keep);
listen("suggested", "click", () => { $("threshold").value = $("suggested").value; refresh(); keep(); });
listen("undo", "click", undo);
listen("clear", "click", () => { view.result = null; say(""); change({ prompts: [], finds: [] }); });
listen("larger", "click", () => zoom(view.zoom * 1.5));
listen("smaller", "click", () => zoom(view.zoom / 1.5));
listen("remove", "click", () => replace(view.chosen));
listen("relabel", "click", () => replace(view.chosen, { ...view.chosen, label: label() }));
for (const [id, negative] of [["as-example", false], ["as-negative", true]]) {
  listen(id, "click", () => {
    const { box, label: name } = view.chosen, prompt = { type: "box", box, label: name, negative };
    change({ prompts: [...view.prompts, prompt], finds: view.finds.filter((one) => one !== view.chosen || !negative) });
  });
}
listen("forget-references", "click", () => { view.references = []; refresh(); });
listen("download", "click", () => attempt(download));
listen("form", "submit", (event) => { event.preventDefault(); if (!$("find").disabled) attempt(find); });
listen("agree", "click", () => attempt(() => consent("PUT", selections())));
listen("refuse", "click", () => { $("consent").hidden = true; });
listen("withdraw", "click", () => attempt(() => consent("DELETE")));
listen("language", "change", () => attempt(async () => { await readNotice($("language").value); await keep(); }));
attempt(start);
