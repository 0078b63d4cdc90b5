// What may be kept in the browser, and the privacy notice.

import { ask } from "./service.js";
import { $, view, wanted } from "./state.js";

export const selections = () => ({
  language: $("language").value || undefined, model: $("model").value, format: $("format").value,
  min_score: Number($("threshold").value), outputs: wanted(),
});

export async function consent(method, body) {
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

export const keep = () => view.consent?.given && consent("PUT", selections());

export async function readNotice(language) {
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
