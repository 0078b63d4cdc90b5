// What a person changes: the image, the boxes and points on it, the finds; and the way back.

import { zoom } from "./canvas.js";
import { refresh, say } from "./panel.js";
import { $, label, takes, view } from "./state.js";

export function change(update) {
  view.past.push({ prompts: view.prompts, finds: view.finds });
  Object.assign(view, { chosen: null, ...update });
  refresh();
}

export function undo() {
  if (view.past.length) Object.assign(view, view.past.pop(), { chosen: null });
  refresh();
}

export function replace(old, ...now) {
  const list = view.prompts.includes(old) ? "prompts" : "finds";
  change({ [list]: view[list].flatMap((one) => one === old ? now : [one]) });
}

export function open(file) {
  if (!file) return;
  const address = URL.createObjectURL(file), picture = $("picture");
  picture.onerror = () => {
    URL.revokeObjectURL(address);
    say("This file is not an image that the browser can show. Choose a JPEG, PNG or WebP.", true);
  };
  picture.onload = () => {
    const most = (view.info?.limits.max_images ?? 2) - 1;
    const boxes = view.prompts.filter(({ type }) => type === "box");
    if (view.file && boxes.length && view.result && $("carry").checked) view.references.push({ file: view.file, prompts: boxes });
    view.references = view.references.slice(-most);
    Object.assign(view, { file, prompts: [], finds: [], result: null, past: [], chosen: null, cross: null });
    $("stage").hidden = false;
    $("invitation").textContent = "Another image: choose, drop or paste it.";
    $("drop").classList.add("small");
    say("");
    zoom(1);
    refresh();
  };
  picture.src = address;
}

export function add(numbers) {
  const place = numbers.map((number) => Math.round(number * 10) / 10);
  const prompt = { type: "point", point: place, label: label(), negative: false };
  if (place.length === 4) {
    const [xa, ya, xb, yb] = place;
    Object.assign(prompt, { type: "box", box: [Math.min(xa, xb), Math.min(ya, yb), Math.max(xa, xb), Math.max(ya, yb)], negative: view.tool === "negative" });
    delete prompt.point;
    if (xa === xb || ya === yb || !takes("box")) return refresh();
  }
  change({ prompts: [...view.prompts, prompt] });
}

export function choose(one) {
  view.chosen = one;
  refresh();
}

export function take(tool) {
  if (tool === "point" ? takes("point") : takes("box")) view.tool = tool;
  refresh();
}
