// What is there: the image, what is drawn on it, what was found, and what the form says.

export const $ = (id) => document.getElementById(id);
export const view = {
  file: null, prompts: [], finds: [], result: null, references: [], past: [],
  tool: "example", chosen: null, drag: null, cross: null, zoom: 1,
  info: null, models: [], consent: null, notice: null, busy: false,
};

export const model = () => view.models.find(({ name }) => name === $("model").value);
export const takes = (type) => model()?.prompts.includes(type) ?? false;
export const shown = () => view.finds.filter(({ score }) => score >= Number($("threshold").value));
export const everything = () => [...view.prompts, ...shown()];
export const words = () => (takes("text") ? $("words").value.split(",") : []).map((text) => text.trim()).filter(Boolean)
  .map((text) => ({ type: "text", text, label: text.slice(0, 200) }));
export const names = () => [...new Set([...words(), ...referred(), ...view.prompts, ...view.finds].map(({ label }) => label))];
export const referred = () => view.references.flatMap(({ prompts }) => prompts);
export const label = () => $("label").value.trim() || "object";
export const asked = (prompts) => prompts.filter(({ type }) => takes(type));
export const wanted = () => [...$("outputs").querySelectorAll("input:checked")].map(({ value }) => value);

// Weaker finds come along, so that the slider can go down as well as up.
export const floor = (one) => Math.round(one.min_score * 50) / 100;
