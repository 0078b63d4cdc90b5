"use strict";
// Draws /v1/usage. A key stays in the field of the open page and goes to this service only.

const $ = (id) => document.getElementById(id);
const WIDTH = 720, HEIGHT = 180, LEFT = 64, BOTTOM = 22;
const DAY_MS = 86_400_000;
let shown = null;

function make(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function element(name, text, ...children) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

function days(since, until) {
  const all = [];
  for (let at = Date.parse(since); at <= Date.parse(until); at += DAY_MS) {
    all.push(new Date(at).toISOString().slice(0, 10));
  }
  return all;
}

function add(sums, name, amount) {
  sums.set(name, (sums.get(name) ?? 0) + amount);
}

function short(number) {
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(number);
}

// Stacked bars: `byDay` maps a day to a map from a part's name to its size.
function bars(title, all, byDay, unit) {
  const parts = [...new Set([...byDay.values()].flatMap((day) => [...day.keys()]))];
  const total = (day) => [...(byDay.get(day)?.values() ?? [])].reduce((a, b) => a + b, 0);
  const most = Math.max(1, ...all.map(total));
  const step = (WIDTH - LEFT) / all.length;
  const y = (value) => (HEIGHT - BOTTOM) * (1 - value / most) + 6;
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 6}`, class: "chart", role: "img", "aria-label": title });
  for (const value of [0, most / 2, most]) {
    svg.append(make("line", { x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value), class: "grid" }),
      make("text", { x: LEFT - 8, y: y(value) + 4, class: "right" }, short(value)));
  }
  all.forEach((day, index) => {
    let below = 0;
    for (const [number, part] of parts.entries()) {
      const size = byDay.get(day)?.get(part) ?? 0;
      if (!size) continue;
      svg.append(make("rect", {
        x: LEFT + index * step + step * 0.1, width: step * 0.8, class: `part${number % 6}`,
        y: y(below + size), height: y(below) - y(below + size),
      }, make("title", {}, `${day}\n${part}: ${short(size)} ${unit}`)));
      below += size;
    }
    if (index % Math.ceil(all.length / 8) === 0) {
      svg.append(make("text", { x: LEFT + index * step, y: HEIGHT + 2 }, day.slice(5)));
    }
  });
  const legend = element("p", "");
  legend.className = "legend";
  for (const [number, part] of parts.entries()) {
    const swatch = make("svg", { viewBox: "0 0 10 10", class: "swatch" },
      make("rect", { width: 10, height: 10, class: `part${number % 6}` }));
    legend.append(element("span", "", swatch, ` ${part}`));
  }
  return element("section", "", element("h2", title), svg, legend);
}

function table(rows) {
  const sums = new Map();
  for (const row of rows) {
    const name = `${row.model} ${row.outcome}`;
    const sum = sums.get(name) ?? { ...row, jobs: 0, images: 0, bytes: 0, annotations: 0 };
    for (const count of ["jobs", "images", "bytes", "annotations"]) sum[count] += row[count];
    sums.set(name, sum);
  }
  const head = ["model", "outcome", "jobs", "images", "bytes", "annotations"];
  const line = (cells, kind) => element("tr", "", ...cells.map((cell) => element(kind, cell)));
  const body = [...sums.values()].map((sum) => line(head.map((name) =>
    typeof sum[name] === "number" ? sum[name].toLocaleString("en") : sum[name]), "td"));
  return element("section", "", element("h2", "Sums"),
    element("table", "", element("thead", "", line(head, "th")), element("tbody", "", ...body)));
}

function draw() {
  const wanted = $("model").value;
  const rows = shown.usage.filter((row) => !wanted || row.model === wanted);
  const all = days(shown.since, shown.until);
  const jobs = new Map(), annotations = new Map(), bytes = new Map(), stages = new Map();
  const done = new Map();
  for (const row of rows) {
    for (const [sums, part, amount] of [[jobs, row.outcome, row.jobs], [bytes, "image bytes", row.bytes],
      [annotations, row.model, row.annotations]]) {
      if (!sums.has(row.day)) sums.set(row.day, new Map());
      add(sums.get(row.day), part, amount);
    }
    if (!row.infer_ms && !row.decode_ms) continue; // failed jobs have no times
    if (!stages.has(row.day)) stages.set(row.day, new Map());
    for (const stage of ["queued", "decode", "infer"]) add(stages.get(row.day), stage, row[`${stage}_ms`]);
    add(done, row.day, row.jobs);
  }
  for (const [day, sums] of stages) {
    for (const [stage, ms] of sums) sums.set(stage, ms / done.get(day));
  }
  $("charts").replaceChildren(
    bars("Jobs by outcome", all, jobs, "jobs"),
    bars("Annotations by model", all, annotations, "annotations"),
    bars("Bytes of images", all, bytes, "bytes"),
    bars("Mean time of a job, in ms", all, stages, "ms"),
    table(rows));
  $("status").textContent = rows.length ? "" : "Nothing was counted in these days.";
}

async function ask(format) {
  const query = new URLSearchParams({ format });
  for (const name of ["since", "until"]) if ($(name).value) query.set(name, $(name).value);
  const headers = $("key").value ? { "X-API-Key": $("key").value } : {};
  const answer = await fetch(`/v1/usage?${query}`, { headers });
  if (answer.ok) return answer;
  if (answer.status === 401) $("key-row").hidden = false;
  throw new Error((await answer.json().catch(() => ({}))).detail ?? `The service answered ${answer.status}.`);
}

async function show() {
  try {
    shown = await (await ask("json")).json();
    [$("since").value, $("until").value] = [shown.since, shown.until];
    const chosen = $("model").value;
    const models = [...new Set(shown.usage.map((row) => row.model))].sort();
    $("model").replaceChildren(new Option("all", ""), ...models.map((name) => new Option(name)));
    $("model").value = models.includes(chosen) ? chosen : "";
    URL.revokeObjectURL($("csv").href);
    $("csv").href = URL.createObjectURL(await (await ask("csv")).blob());
    $("csv").hidden = false;
    $("status").className = "";
    draw();
  } catch (error) {
    $("charts").replaceChildren();
    $("status").className = "error";
    $("status").textContent = error.message;
  }
}

$("ask").addEventListener("submit", (event) => { event.preventDefault(); show(); });
$("model").addEventListener("change", draw);
show();
