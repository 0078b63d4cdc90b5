"use strict";
// What a person can do about their data, on the page of the privacy notice. Its words are in the
// page, in the language of the notice.

const $ = (id) => document.getElementById(id);
const words = $("your-data").dataset;
const view = { data: null };

async function ask(path, method = "GET", body = undefined) {
  const headers = $("key").value ? { "X-API-Key": $("key").value } : {};
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Error(words.unreachable);
  }
  if (answer.status === 204) return null;
  const document = await answer.json();
  if (!answer.ok) throw new Error(document.detail ?? words.unreachable);
  return document;
}

async function attempt(work) {
  $("status").className = "";
  try {
    $("status").textContent = await work() ?? "";
  } catch (error) {
    $("status").textContent = error.message;
    $("status").className = "error";
  }
}

function show(document) {
  $("data").textContent = JSON.stringify(document, null, 2);
  $("data").hidden = false;
}

async function see() {
  view.data = await ask("/v1/privacy/data");
  show(view.data);
  const account = view.data.account;
  $("take").hidden = false;
  for (const id of ["correct", "object", "account-too"]) $(id).hidden = !account;
  if (!account) return;
  Object.assign($("account-label"), { value: account.label });
  Object.assign($("account-contact"), { value: account.contact });
  $("account-news").checked = Boolean(account.news_since);
  $("no-statistics").checked = account.no_statistics;
  $("no-logs").checked = account.no_logs;
}

function take() {
  const text = new Blob([JSON.stringify(view.data, null, 2)], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(text), download: "mayfly-my-data.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function correct() {
  await ask("/v1/privacy/data", "PATCH", {
    label: $("account-label").value, contact: $("account-contact").value, news: $("account-news").checked,
  });
  await see();
  return words.saved;
}

async function object() {
  await ask("/v1/privacy/objections", "PUT", { statistics: $("no-statistics").checked, logs: $("no-logs").checked });
  await see();
  return words.saved;
}

async function erase() {
  const what = `jobs,logs,consent${$("erase-account").checked ? ",account" : ""}`;
  const receipt = await ask(`/v1/privacy/data?what=${what}`, "DELETE");
  view.data = receipt;
  show(receipt);
  for (const id of ["correct", "object", "account-too"]) $(id).hidden = true;
  if ($("erase-account").checked) $("key").value = "";
  await showConsent();
  return words.erased;
}

async function showConsent(state = undefined) {
  const { possible, given } = state ?? await ask("/v1/privacy/consent");
  $("consent").textContent = given ? `${words.agreed} ${given.since}.` : possible ? words.notAgreed : words.saysNo;
  $("agree").hidden = Boolean(given) || !possible;
  $("withdraw").hidden = !given;
}

async function agree() {
  await showConsent(await ask("/v1/privacy/consent", "PUT", { language: document.documentElement.lang }));
}

async function withdraw() {
  await ask("/v1/privacy/consent", "DELETE");
  await showConsent();
}

const listen = (id, kind, act) => $(id).addEventListener(kind, act);
for (const [id, act] of Object.entries({ take, agree, withdraw })) listen(id, "click", () => attempt(act));
for (const [id, act] of Object.entries({ see, correct, object })) {
  listen(id, "submit", (event) => { event.preventDefault(); attempt(act); });
}
listen("erase", "submit", (event) => { event.preventDefault(); $("sure").showModal(); });
listen("no", "click", () => $("sure").close());
listen("yes", "click", () => { $("sure").close(); attempt(erase); });
$("own").hidden = false; // without scripts it would be of no use
attempt(() => showConsent());
