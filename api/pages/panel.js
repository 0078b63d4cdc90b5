// What is seen beside the image: the hint, the labels, the finds, and which buttons can be pressed.

import { colour, draw } from "./canvas.js";
import { $, asked, label, model, names, referred, shown, takes, view, words } from "./state.js";

export function say(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function hint() {
  if (!view.file) return "";
  if (view.cross && view.drag) return "Arrows, then Space for the other corner.";
  if (model() && !model().prompts.length) return `This model knows ${model().labels.length || "its"} labels and needs no box.`;
  if (!takes("box") && takes("text")) return "This model is told in words what to find.";
  if (view.tool === "negative") return "Drag a box round something that looks alike and is not meant.";
  if (view.tool === "point") return "Click on one that you mean.";
  if (view.prompts.length) return "More examples help. A click chooses a box.";
  return `${takes("text") ? "Write what you mean, or drag" : "Drag"} a box round one that you mean.`;
}

export function refresh() {
  const meant = asked([...words(), ...referred(), ...view.prompts]).some(({ negative }) => !negative);
  $("find").disabled = view.busy || !view.file || Boolean(model()?.prompts.length && !meant);
  $("undo").disabled = !view.past.length;
  $("clear").disabled = !view.prompts.length && !view.finds.length;
  $("larger").disabled = $("smaller").disabled = !view.file;
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.hidden = button.dataset.tool === "point" ? !takes("point") : !takes("box");
    button.setAttribute("aria-pressed", button.dataset.tool === view.tool);
  }
  $("hint").textContent = hint();
  const count = view.prompts.length + referred().length;
  $("references").hidden = !view.references.length;
  $("references-text").textContent = `${referred().length} from ${view.references.length === 1 ? "an image" : "images"} before this one ${count === 1 ? "shows" : "show"} what is meant.`;
  showLabels();
  showResults();
  draw();
}

function showLabels() {
  $("labels").replaceChildren(...names().map((name) => new Option(name)));
  $("chips").replaceChildren(...(names().length < 2 ? [] : names().map((name, at) => {
    const chip = document.createElement("button");
    const many = shown().filter((one) => one.label === name).length;
    Object.assign(chip, { type: "button", className: "chip", textContent: many ? `${name} ${many}` : name });
    chip.style.borderColor = colour(name);
    if (at < 9) chip.title = String(at + 1);
    chip.setAttribute("aria-pressed", name === label());
    chip.addEventListener("click", () => { $("label").value = name; refresh(); });
    return chip;
  })));
}

function showResults() {
  $("results").hidden = !view.result;
  $("threshold-shown").textContent = Number($("threshold").value).toFixed(2);
  $("count").textContent = `${shown().length} of ${view.finds.length} finds`;
  const one = view.chosen;
  $("chosen").hidden = !one;
  if (!one) return;
  const isFind = view.finds.includes(one);
  $("chosen-text").textContent = isFind ? `${one.label}, score ${one.score.toFixed(2)}` : `${one.negative ? "not meant" : "example"}: ${one.label}`;
  $("relabel").textContent = `Call it “${label()}”`;
  $("relabel").hidden = one.label === label();
  $("as-example").hidden = $("as-negative").hidden = !isFind || !takes("box");
}

export function announce() {
  const text = `The privacy notice has changed (${view.notice.effective}). Read what is new.`;
  $("changed").replaceChildren(Object.assign(document.createElement("a"), { href: $("notice").href, textContent: text }));
  $("changed").hidden = false;
}
