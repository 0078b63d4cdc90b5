// What is asked of the service: to find all, and to write the finds in a format.

import { change } from "./edit.js";
import { announce, say } from "./panel.js";
import { $, asked, floor, model, shown, takes, view, wanted, words } from "./state.js";

const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

export async function ask(path, options = {}) {
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

function submission() {
  const form = new FormData(), request = { model: model().name, outputs: wanted(), min_score: floor(model()) };
  if (model().prompts.length) Object.assign(request, { prompts: asked([...view.prompts, ...words()]), match: $("match").value, turned: $("turned").checked });
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

export async function find() {
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
export async function download() {
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
