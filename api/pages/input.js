// Drawing by pointer and by keyboard, and the keys of the page.

import { draw, zoom } from "./canvas.js";
import { add, choose, replace, take, undo } from "./edit.js";
import { refresh } from "./panel.js";
import { $, everything, names, takes, view } from "./state.js";

function point(event) {
  const frame = $("canvas").getBoundingClientRect(), picture = $("picture");
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  return [clamp((event.clientX - frame.left) / frame.width, 1) * picture.naturalWidth,
    clamp((event.clientY - frame.top) / frame.height, 1) * picture.naturalHeight];
}

export function press(event) {
  if (event.button) return;
  $("canvas").setPointerCapture(event.pointerId);
  view.cross = null;
  view.drag = [...point(event), ...point(event)];
}

export function move(event) {
  if (!view.drag || view.cross) return;
  view.drag.splice(2, 2, ...point(event));
  draw();
}

export function release(event) {
  if (!view.drag || view.cross) return;
  const [x0, y0, x1, y1] = view.drag, scale = $("canvas").clientWidth / $("picture").naturalWidth;
  view.drag = null;
  if (event.type === "pointercancel") refresh();
  else if (view.tool === "point" && takes("point")) add([x0, y0]);
  else if (Math.hypot(x1 - x0, y1 - y0) * scale < 5) choose(at(x0, y0));
  else add([x0, y0, x1, y1]);
}

function at(x, y) {
  const area = ({ box: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);
  const reach = 8 * $("picture").naturalWidth / $("canvas").clientWidth;
  const near = view.prompts.find((one) => one.point && Math.hypot(one.point[0] - x, one.point[1] - y) < reach);
  const under = everything()
    .filter(({ box }) => box && x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3])
    .sort((a, b) => area(a) - area(b));
  return near ?? under[(under.indexOf(view.chosen) + 1) % under.length] ?? null; // the next one at each click
}

export function canvasKey(event) {
  const { naturalWidth: width, naturalHeight: height } = $("picture");
  const step = Math.max(1, width / 200) * (event.shiftKey ? 10 : 1);
  const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
  const all = everything(), now = all.indexOf(view.chosen);
  if (move) {
    const from = view.cross ?? [width / 2, height / 2];
    view.cross = [Math.min(width, Math.max(0, from[0] + move[0])), Math.min(height, Math.max(0, from[1] + move[1]))];
    if (view.drag) view.drag.splice(2, 2, ...view.cross);
    refresh();
  } else if (event.key === " " && view.cross) {
    const done = view.tool === "point" ? view.cross : view.drag;
    view.drag = done ? null : [...view.cross, ...view.cross];
    if (done) add(done);
    else refresh();
  } else if (event.key === "," && all.length) choose(all[(now <= 0 ? all.length : now) - 1]);
  else if (event.key === "." && all.length) choose(all[(now + 1) % all.length]);
  else return;
  event.preventDefault();
}

export function pageKey(event) {
  const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !typing) undo();
  else if (typing || event.ctrlKey || event.metaKey || event.altKey || !view.file) return;
  else if (event.key === "Escape") Object.assign(view, { drag: null, cross: null }), choose(null);
  else if ((event.key === "Delete" || event.key === "Backspace") && view.chosen) replace(view.chosen);
  else if ("enp".includes(event.key)) take({ e: "example", n: "negative", p: "point" }[event.key]);
  else if (event.key === "f") $("form").requestSubmit($("find"));
  else if (event.key === "+") zoom(view.zoom * 1.5);
  else if (event.key === "-") zoom(view.zoom / 1.5);
  else if (event.key === "0") zoom(1);
  else if (names()[Number(event.key) - 1]) $("label").value = names()[Number(event.key) - 1], refresh();
  else return;
  event.preventDefault();
}
