"use strict";
// The page: what is drawn on an image becomes prompts, what is found is drawn over it and can be put
// right. The image goes to this service and nowhere else; its name does not leave the browser.

const $ = (id) => document.getElementById(id);
const COLOURS = ["#0b9a5b", "#2a6fdb", "#c2410c", "#8b3fd1", "#b3186d", "#0e7c86", "#7a6a00", "#5b6472"];
const NOT_MEANT = "#b3261e";
const view = {
  file: null, prompts: [], finds: [], result: null, references: [], past: [],
  tool: "example", chosen: null, drag: null, cross: null, zoom: 1,
  info: null, models: [], consent: null, notice: null, busy: false,
};

// --- what is there

const model = () => view.models.find(({ name }) => name === $("model").value);
const takes = (type) => model()?.prompts.includes(type) ?? false;
const shown = () => view.finds.filter(({ score }) => score >= Number($("threshold").value));
const everything = () => [...view.prompts, ...shown()];
const words = () => (takes("text") ? $("words").value.split(",") : []).map((text) => text.trim()).filter(Boolean)
  .map((text) => ({ type: "text", text, label: text.slice(0, 200) }));
const names = () => [...new Set([...words(), ...referred(), ...view.prompts, ...view.finds].map(({ label }) => label))];
const referred = () => view.references.flatMap(({ prompts }) => prompts);
const colour = (label) => COLOURS[Math.max(0, names().indexOf(label)) % COLOURS.length];
const label = () => $("label").value.trim() || "object";
const asked = (prompts) => prompts.filter(({ type }) => takes(type));

function change(update) {
  view.past.push({ prompts: view.prompts, finds: view.finds });
  Object.assign(view, { chosen: null, ...update });
  refresh();
}

function undo() {
  if (view.past.length) Object.assign(view, view.past.pop(), { chosen: null });
  refresh();
}

function replace(old, ...now) {
  const list = view.prompts.includes(old) ? "prompts" : "finds";
  change({ [list]: view[list].flatMap((one) => one === old ? now : [one]) });
}

// --- what is seen

function say(text, isError = false) {
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

function refresh() {
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

function draw() {
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
function maskPath({ size: [height], counts }) {
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

// --- images

function open(file) {
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

function zoom(factor) {
  view.zoom = Math.min(8, Math.max(1, factor));
  $("frame").style.width = `${view.zoom * 100}%`;
  draw();
}

// --- drawing: by pointer, by keyboard

function point(event) {
  const frame = $("canvas").getBoundingClientRect(), picture = $("picture");
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  return [clamp((event.clientX - frame.left) / frame.width, 1) * picture.naturalWidth,
    clamp((event.clientY - frame.top) / frame.height, 1) * picture.naturalHeight];
}

function press(event) {
  if (event.button) return;
  $("canvas").setPointerCapture(event.pointerId);
  view.cross = null;
  view.drag = [...point(event), ...point(event)];
}

function move(event) {
  if (!view.drag || view.cross) return;
  view.drag.splice(2, 2, ...point(event));
  draw();
}

function release(event) {
  if (!view.drag || view.cross) return;
  const [x0, y0, x1, y1] = view.drag, scale = $("canvas").clientWidth / $("picture").naturalWidth;
  view.drag = null;
  if (event.type === "pointercancel") refresh();
  else if (view.tool === "point" && takes("point")) add([x0, y0]);
  else if (Math.hypot(x1 - x0, y1 - y0) * scale < 5) choose(at(x0, y0));
  else add([x0, y0, x1, y1]);
}

function add(numbers) {
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

function at(x, y) {
  const area = ({ box: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);
  const reach = 8 * $("picture").naturalWidth / $("canvas").clientWidth;
  const near = view.prompts.find((one) => one.point && Math.hypot(one.point[0] - x, one.point[1] - y) < reach);
  const under = everything()
    .filter(({ box }) => box && x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3])
    .sort((a, b) => area(a) - area(b));
  return near ?? under[(under.indexOf(view.chosen) + 1) % under.length] ?? null; // the next one at each click
}

function choose(one) {
  view.chosen = one;
  refresh();
}

function canvasKey(event) {
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

function pageKey(event) {
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

function take(tool) {
  if (tool === "point" ? takes("point") : takes("box")) view.tool = tool;
  refresh();
}

// --- the service

const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

async function ask(path, options = {}) {
  for (let left = 3; ; left--) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      if (left) { await pause(0.7); continue; } // safe: a submission carries its own token
      throw new Error("The service cannot be reached. Your image and boxes are still here: check the connection and press “Find all” again.");
    }
    if (answer.headers.has("Mayfly-Notice")) announce();
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => ({}));
    const wait = answer.headers.get("Retry-After");
    if (answer.status === 409 && left && wait) { await pause(Number(wait)); continue; }
    if ([401, 403, 429].includes(answer.status)) $("key-row").hidden = false; // a key may help
    const again = wait && answer.status !== 409 ? ` Press “Find all” again in ${wait} s.` : "";
    const lost = answer.status === 404 || answer.status === 410 ? " Press “Find all” again: your image and boxes are still here." : "";
    throw new Error((problem.detail ?? `The service answered ${answer.status}.`) + again + lost);
  }
}

function randomToken() {
  const bytes = crypto.getRandomValues(new Uint8Array(32));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace("=", "");
}

const keyHeader = () => $("key").value ? { "X-API-Key": $("key").value } : {};
const wanted = () => [...$("outputs").querySelectorAll("input:checked")].map(({ value }) => value);

// Weaker finds come along, so that the slider can go down as well as up.
const floor = (one) => Math.round(one.min_score * 50) / 100;

function submission() {
  const form = new FormData(), request = { model: model().name, outputs: wanted(), min_score: floor(model()) };
  if (model().prompts.length) Object.assign(request, { prompts: asked([...view.prompts, ...words()]), match: $("match").value });
  view.references.forEach(({ file, prompts }, number) => {
    const image = `example${number}`;
    if (!takes("box")) return;
    request.prompts.push(...prompts.map((prompt) => ({ ...prompt, image })));
    form.append(image, file, image);
  });
  form.append("request", JSON.stringify(request));
  form.append("image", view.file, "image"); // its name stays here
  return form;
}

async function find() {
  const token = randomToken(), started = performance.now(), file = view.file;
  const headers = { Authorization: `Bearer ${token}`, "Idempotency-Key": token.slice(0, 16) };
  say("Sending …");
  const sent = { method: "POST", body: submission(), headers: { ...headers, ...keyHeader() } };
  const job = await (await ask("/v1/jobs", sent)).json();
  for (let state = job; state.status !== "done";) {
    say(state.status === "running" ? "Looking …" : `Waiting, ${state.position ?? 0} before this one …`);
    state = await (await ask(`${job.links.self}?wait=${state === job ? 1 : 25}`, { headers })).json();
  }
  const result = await (await ask(job.links.result, { headers })).json();
  await ask(job.links.self, { method: "DELETE", headers });
  if (view.file !== file) return; // another image was opened meanwhile
  view.result = result;
  const lowest = Math.min(floor(model()), ...result.annotations.map(({ score }) => score));
  $("threshold").min = Math.floor(lowest * 100) / 100;
  change({ finds: result.annotations });
  const suggested = result.suggested_min_score;
  Object.assign($("suggested"), { hidden: suggested === undefined, value: suggested, textContent: `Suggested: ${suggested}` });
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  say(`${shown().length} found in ${seconds} s. The service holds nothing of it any more.`);
}

// The service writes the format; the image's name is put in here, in place of one that it is given.
async function download() {
  const format = $("format").value, standIn = `image-${randomToken().replace(/\W/g, "")}`;
  const annotations = shown().map(({ path, ...one }) => one);
  const answer = await ask(`/v1/convert?format=${format}&name=${standIn}`, {
    method: "POST", headers: keyHeader(), body: JSON.stringify({ ...view.result, annotations }),
  });
  const type = answer.headers.get("Content-Type").split(";")[0];
  const written = (await answer.text()).replaceAll(standIn, () => escaped(view.file.name, type));
  const address = URL.createObjectURL(new Blob([written], { type }));
  const extension = { "application/json": "json", "application/xml": "xml", "text/csv": "csv" }[type] ?? "txt";
  const stem = view.file.name.replace(/\.\w+$/, "");
  const isTwin = extension === "txt" || format === "voc" || format === "labelme"; // named as their image
  Object.assign(document.createElement("a"), {
    href: address, download: isTwin ? `${stem}.${extension}` : `${stem}-${format}.${extension}`,
  }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  const labels = answer.headers.get("Mayfly-Labels");
  if (labels) say(`The numbers in it stand for: ${JSON.parse(labels).map((name, at) => `${at} ${name}`).join(", ")}.`);
}

function escaped(name, type) {
  if (type === "application/json") return JSON.stringify(name).slice(1, -1);
  if (type === "application/xml") return name.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  return /[",\n]/.test(name) ? `"${name.replaceAll('"', '""')}"` : name;
}

// --- what may be kept, and the notice

const selections = () => ({
  language: $("language").value || undefined, model: $("model").value, format: $("format").value,
  min_score: Number($("threshold").value), outputs: wanted(),
});

async function consent(method, body) {
  const answer = await ask("/v1/privacy/consent", { method, body: body && JSON.stringify(body) });
  view.consent = answer.status === 204 ? { ...view.consent, given: null } : await answer.json();
  const { possible, given } = view.consent;
  $("consent").hidden = !possible && !given;
  $("consent-text").textContent = given
    ? "Your selections (model, format, score, language) are kept in one cookie."
    : "Keep your selections (model, format, score, language) in one cookie for the next time?";
  $("agree").hidden = $("refuse").hidden = Boolean(given);
  $("withdraw").hidden = !given;
}

const keep = () => view.consent?.given && consent("PUT", selections());

async function readNotice(language) {
  const notice = await (await ask("/v1/privacy/notice" + (language ? `?lang=${language}` : ""))).json();
  view.notice = notice;
  $("short").textContent = notice.short;
  $("short").lang = $("notice").lang = notice.language;
  $("notice").href = `/privacy?lang=${notice.language}`;
  $("notice").textContent = `${notice.title} (${notice.effective})`;
  $("language").replaceChildren(...notice.languages.map((name) => new Option(
    new Intl.DisplayNames([name], { type: "language" }).of(name), name, false, name === notice.language)));
  return notice;
}

function announce() {
  const text = `The privacy notice has changed (${view.notice.effective}). Read what is new.`;
  $("changed").replaceChildren(Object.assign(document.createElement("a"), { href: $("notice").href, textContent: text }));
  $("changed").hidden = false;
}

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

// --- wiring

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
