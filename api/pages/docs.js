"use strict";
// Lists the operations of /openapi.json. Text goes in as text, never as markup.

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function table(rows) {
  const body = element("tbody");
  for (const [head, text] of rows) {
    body.append(element("tr", "", element("th", "", element("code", head)), element("td", text)));
  }
  return element("table", "", body);
}

function describe(schema, components) {
  if (schema.$ref) return describe(components[schema.$ref.split("/").pop()], components);
  return JSON.stringify(schema, null, 1);
}

function operation(method, path, spec, components) {
  const badge = element("span", method.toUpperCase());
  badge.className = "method";
  const details = element("details", "",
    element("summary", "", badge, element("code", path), element("h2", spec.summary)));
  if (spec.description) details.append(element("p", spec.description));
  if (spec.parameters) {
    details.append(table(spec.parameters.map((p) => [`${p.name} (${p.in})`, p.description])));
  }
  const form = spec.requestBody?.content["multipart/form-data"];
  if (form) {
    details.append(element("p", "The request, as JSON in the part or query parameter “request”:"),
      element("pre", describe(form.schema.properties.request, components)));
  }
  details.append(table(Object.entries(spec.responses).map(([s, r]) => [s, r.description])));
  return element("section", "", details);
}

async function main() {
  document.getElementById("origin").textContent = location.origin;
  const spec = await (await fetch("/openapi.json")).json();
  const list = document.getElementById("operations");
  list.replaceChildren();
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, one] of Object.entries(methods)) {
      list.append(operation(method, path, one, spec.components.schemas));
    }
  }
}

main();
