"use strict";
// The page: boxes drawn on a canvas become prompts, the result is drawn over them. The image goes
// to this service and nowhere else; nothing is kept in the browser beyond the open page.

const $ = (id) => document.getElementById(id);
const view = { file: null, picture: null, boxes: [], drag: null, found: [], formats: [] };
const COLOURS = { example: "#d0342c", negative: "#8a5a00", found: "#0b9a5b" };

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function model() {
  return view.models?.find((one) => one.name === $("model").value);
}

function refresh() {
  const needsBox = model()?.prompts.length > 0;
  const examples = view.boxes.filter((box) => !box.negative).length;
  $("find").disabled = !view.picture || (needsBox && examples === 0);
  $("clear").disabled = view.boxes.length === 0 && view.found.length === 0;
  $("hint").textContent = !view.picture ? "" : needsBox
    ? "Drag a box round one example. More boxes help; boxes that are not meant keep look-alikes out."
    : `This model knows ${model()?.labels.length ?? "its"} labels and needs no box.`;
  draw();
}

function draw() {
  const canvas = $("canvas");
  if (!view.picture) return;
  const pen = canvas.getContext("2d");
  const line = Math.max(2, canvas.width / 400);
  pen.drawImage(view.picture, 0, 0);
  pen.lineWidth = line;
  const size = Math.max(9, canvas.width / 60);
  pen.font = `${size}px system-ui, sans-serif`;
  const sameLabel = new Set(view.found.map(({ label }) => label)).size < 2;
  for (const { box: [x0, y0, x1, y1], score, label } of view.found) {
    const text = sameLabel ? score.toFixed(2) : `${label} ${score.toFixed(2)}`;
    pen.strokeStyle = pen.fillStyle = COLOURS.found;
    pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    pen.fillRect(x0 - line / 2, Math.max(0, y0 - size * 1.2), pen.measureText(text).width + line * 2, size * 1.2);
    pen.fillStyle = "#fff";
    pen.fillText(text, x0 + line / 2, Math.max(size, y0 - size * 0.25));
  }
  const open = view.drag ? [{ box: view.drag, negative: $("negative").checked }] : [];
  for (const { box: [x0, y0, x1, y1], negative } of [...view.boxes, ...open]) {
    pen.strokeStyle = negative ? COLOURS.negative : COLOURS.example;
    pen.setLineDash(negative ? [line * 3, line * 2] : []);
    pen.strokeRect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
  }
  pen.setLineDash([]);
}

async function open(file) {
  if (!file) return;
  try {
    view.picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    say("This file is not an image that the browser can show. Choose a JPEG, PNG or WebP.", true);
    return;
  }
  Object.assign(view, { file, boxes: [], found: [] });
  Object.assign($("canvas"), { width: view.picture.width, height: view.picture.height });
  $("stage").hidden = false;
  $("download").hidden = true;
  say("");
  refresh();
}

function point(event) {
  const canvas = $("canvas"), frame = canvas.getBoundingClientRect();
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  return [clamp((event.clientX - frame.left) / frame.width * canvas.width, canvas.width),
    clamp((event.clientY - frame.top) / frame.height * canvas.height, canvas.height)];
}

function drag(event) {
  if (event.type === "pointerdown") {
    $("canvas").setPointerCapture(event.pointerId);
    view.drag = [...point(event), ...point(event)];
  } else if (view.drag) {
    view.drag.splice(2, 2, ...point(event));
    if (event.type === "pointerup") {
      const [xa, ya, xb, yb] = view.drag.map((number) => Math.round(number * 10) / 10);
      view.drag = null;
      if (Math.abs(xa - xb) >= 3 && Math.abs(ya - yb) >= 3) {
        const box = [Math.min(xa, xb), Math.min(ya, yb), Math.max(xa, xb), Math.max(ya, yb)];
        view.boxes.push({ box, negative: $("negative").checked });
        $("negative").checked = false;
      }
    }
  }
  refresh();
}

function randomToken() {
  const bytes = crypto.getRandomValues(new Uint8Array(32));
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace("=", "");
}

async function ask(path, token, options = {}) {
  const headers = { Authorization: `Bearer ${token}`, ...options.headers };
  const answer = await fetch(path, { ...options, headers });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.detail ?? `The service answered ${answer.status}.`);
  }
  return answer;
}

async function find() {
  const label = $("label").value || "object";
  const request = { model: $("model").value || undefined };
  if ($("score").value !== "") request.min_score = Number($("score").value);
  if (model()?.prompts.length) {
    request.prompts = view.boxes.map(({ box, negative }) => ({ type: "box", box, label, negative }));
  }
  const form = new FormData();
  form.append("request", JSON.stringify(request));
  form.append("image", view.file, "image"); // its name stays here
  const token = randomToken();
  const headers = $("key").value ? { "X-API-Key": $("key").value } : {};
  say("Sending …");
  const job = await (await ask("/v1/jobs", token, { method: "POST", body: form, headers })).json();
  for (let state = job; state.status !== "done";) {
    say(state.status === "running" ? "Looking …" : `Waiting, ${state.position ?? 0} before this one …`);
    state = await (await ask(`${job.links.self}?wait=${state === job ? 1 : 25}`, token)).json();
  }
  const lease = { headers: { "Idempotency-Key": token.slice(0, 16) } };
  const format = $("format").value;
  const result = await (await ask(job.links.result, token, lease)).json();
  const copy = await (await ask(`${job.links.result}?format=${format}`, token, lease)).blob();
  await ask(job.links.self, token, { method: "DELETE", ...lease });
  view.found = result.annotations;
  offer(copy, format);
  const { queued_ms, decode_ms, infer_ms } = result.timing;
  say(`${view.found.length} found in ${((queued_ms + decode_ms + infer_ms) / 1000).toFixed(1)} s. ` +
    "The service holds nothing of it any more.");
  refresh();
}

function offer(blob, format) {
  const link = $("download");
  if (link.href) URL.revokeObjectURL(link.href);
  const kind = blob.type.split(";")[0].split("/")[1];
  link.href = URL.createObjectURL(blob);
  link.download = `annotations-${format}.${{ plain: "txt" }[kind] ?? kind}`;
  link.hidden = false;
}

async function start() {
  const [info, models] = await Promise.all(
    ["/v1/info", "/v1/models"].map(async (path) => (await fetch(path)).json()));
  view.models = models.models;
  for (const { name } of models.models) $("model").add(new Option(name, name, false, name === models.default));
  for (const name of info.formats) $("format").add(new Option(name, name, false, name === "coco"));
  $("key-row").hidden = !info.api_key_required;
  $("score").placeholder = model()?.min_score ?? "";
  $("promise").textContent = "The image goes when its result is there, at the latest after " +
    `${info.retention.image_ttl_s} s; the result goes when you have it. Nothing stays behind.`;
  refresh();
}

$("file").addEventListener("change", () => open($("file").files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") open(event.dataTransfer.files[0]);
  });
}
for (const kind of ["pointerdown", "pointermove", "pointerup"]) $("canvas").addEventListener(kind, drag);
$("model").addEventListener("change", refresh);
$("clear").addEventListener("click", () => {
  Object.assign(view, { boxes: [], found: [] });
  $("download").hidden = true;
  say("");
  refresh();
});
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("find").disabled = true;
  try {
    await find();
  } catch (error) {
    say(error.message, true);
  }
  refresh();
});
start().catch(() => say("The service does not answer. Reload the page in a moment.", true));
