// What is drawn over the image.

import { $, label, names, shown, view } from "./state.js";

const NOT_MEANT = "#b3261e";
const COLOURS = ["#0b9a5b", "#2a6fdb", "#c2410c", "#8b3fd1", "#b3186d", "#0e7c86", "#7a6a00", "#5b6472"];
export const colour = (label) => COLOURS[Math.max(0, names().indexOf(label)) % COLOURS.length];

export function draw() {
  const canvas = $("canvas");
  if (!view.file) return;
  const dots = window.devicePixelRatio || 1, scale = canvas.clientWidth / $("picture").naturalWidth;
  Object.assign(canvas, { width: canvas.clientWidth * dots, height: canvas.clientHeight * dots });
  const pen = canvas.getContext("2d");
  pen.scale(dots, dots);
  pen.font = "600 12px system-ui, sans-serif";
  const finds = shown(), sameLabel = names().length < 2;
  for (const find of finds) {
    if (find.mask) {
      pen.save();
      pen.scale(scale, scale);
      pen.globalAlpha = 0.4;
      pen.fillStyle = colour(find.label);
      pen.fill(find.path ??= maskPath(find.mask));
      pen.restore();
    }
    outline(pen, find, scale, colour(find.label), 1.5);
    for (const [x, y, visible] of find.keypoints ?? []) if (visible) dot(pen, x * scale, y * scale, 3, colour(find.label));
    if (finds.length <= 60 || find === view.chosen) tag(pen, find, scale, sameLabel ? find.score.toFixed(2) : `${find.label} ${find.score.toFixed(2)}`);
  }
  for (const prompt of view.prompts) {
    const ink = prompt.negative ? NOT_MEANT : colour(prompt.label);
    if (prompt.type === "point") dot(pen, prompt.point[0] * scale, prompt.point[1] * scale, 6, ink);
    else outline(pen, prompt, scale, ink, 3, prompt.negative);
  }
  if (view.chosen?.box) outline(pen, view.chosen, scale, "#fff", 5, false, true);
  if (view.drag) outline(pen, { box: view.drag }, scale, view.tool === "negative" ? NOT_MEANT : colour(label()), 2, view.tool === "negative");
  if (view.cross) {
    const [x, y] = view.cross.map((at) => at * scale);
    pen.globalCompositeOperation = "difference";
    pen.fillStyle = "#fff";
    pen.fillRect(x - 12, y - 1, 24, 2);
    pen.fillRect(x - 1, y - 12, 2, 24);
    pen.globalCompositeOperation = "source-over";
  }
}

function outline(pen, { box }, scale, ink, width, dashed = false, hollow = false) {
  const [x0, y0, x1, y1] = box.map((at) => at * scale);
  const sides = [Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)];
  pen.setLineDash(dashed ? [7, 5] : []);
  pen.strokeStyle = hollow ? "#000" : "rgb(255 255 255 / .65)";
  pen.lineWidth = width + 2;
  pen.strokeRect(...sides);
  pen.strokeStyle = ink;
  pen.lineWidth = width;
  pen.strokeRect(...sides);
  pen.setLineDash([]);
}

function tag(pen, { box, label: name }, scale, text) {
  const [x, y] = [box[0] * scale, Math.max(15, box[1] * scale)];
  pen.fillStyle = colour(name);
  pen.fillRect(x - 1, y - 15, pen.measureText(text).width + 8, 15);
  pen.fillStyle = "#fff";
  pen.fillText(text, x + 3, y - 4);
}

function dot(pen, x, y, radius, ink) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = ink;
  pen.fill();
  pen.strokeStyle = "#fff";
  pen.lineWidth = 1.5;
  pen.stroke();
}

// COCO's compressed run lengths: numbers of five bits and "more follows", from the fourth run on as
// the change since the last of its kind; they go down the columns, background first.
export function maskPath({ size: [height], counts }) {
  const path = new Path2D(), runs = [];
  for (let at = 0, value = 0, shift = 0; at < counts.length; at++) {
    const bits = counts.charCodeAt(at) - 48;
    value |= (bits & 31) << shift;
    shift += 5;
    if (bits & 32) continue;
    if (bits & 16) value |= -1 << shift;
    runs.push(value + (runs.length > 2 ? runs[runs.length - 2] : 0));
    value = shift = 0;
  }
  let at = 0;
  runs.forEach((run, number) => {
    for (let end = at + run; number % 2 && at < end;) {
      const x = Math.floor(at / height), y = at % height, length = Math.min(height - y, end - at);
      path.rect(x, y, 1, length);
      at += length;
    }
    if (number % 2 === 0) at += run;
  });
  return path;
}

export function zoom(factor) {
  view.zoom = Math.min(8, Math.max(1, factor));
  $("frame").style.width = `${view.zoom * 100}%`;
  draw();
}
