"use strict";
// The parts of the pages of all tasks: requests, the models that are served, and the feedback.
const byId = id => document.getElementById(id);
const ROLES = {champion: "Champion", baseline: "Baseline", challenger: "Challenger"};
const NUM_CLASSES_SHOWN = 8;
let served = null;  // the response of /v1/models

class ServiceError extends Error {
  constructor(message, status, code) {
    super(message);
    Object.assign(this, {status, code});
  }
}

async function call(path, {body, signal} = {}) {
  const headers = {"content-type": "application/json"};
  if (byId("key").value) headers.authorization = "Bearer " + byId("key").value;
  const options = body ? {method: "POST", body: JSON.stringify(body), headers, signal} : {headers, signal};
  const answer = await fetch("v1/" + path, options);
  if (answer.ok) return answer;
  if (answer.status === 401) {
    byId("key-field").hidden = false;
    byId("key").focus();
    if (!headers.authorization) throw new ServiceError("This service requires an API key.", 401);
  }
  let error = {message: answer.status + " " + answer.statusText};
  try { error = (await answer.json()).error; } catch { }  // errors of Serve itself are not JSON
  throw new ServiceError(error.message, answer.status, error.code);
}

function element(tag, {text, ...fields} = {}, ...children) {
  const node = Object.assign(document.createElement(tag), fields);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

const champion = () => served.data.find(model => model.id === "champion");

// The other models, each once: after a verdict for the incumbent, `baseline` is the champion itself.
function others() {
  const digests = new Set([champion().digest]);
  return served.data.filter(model => !digests.has(model.digest) && digests.add(model.digest));
}

const roleOf = model => ROLES[model.id] || "Other version";

function compared() {
  return others().find(model => model.id === byId("other").value);
}

async function showService() {
  served = await (await call("models")).json();
  const model = champion();
  document.title = byId("name").textContent = model.name;
  byId("about").textContent = about(model);
  byId("champion").replaceChildren("The champion answers: ", element("b", {text: model.description}),
    " (", element("code", {text: model.version}), ")");
  byId("reason").textContent = model.verdict || "No verdict selected this version.";
  byId("who").hidden = false;
  byId("system").hidden = !model.system;
  byId("system-text").textContent = model.system || "";
  showOthers();
  showExamples();
}

function showOthers() {
  const models = others(), previous = byId("other").value;
  byId("other-field").hidden = !models.length;
  byId("other").replaceChildren(
    ...models.map(model => element("option", {value: model.id, text: roleOf(model) + ": " + model.description + " (" + model.version + ")"})),
    element("option", {value: "", text: "no other model"}));
  if (models.some(model => model.id === previous)) byId("other").value = previous;
  byId("alone").hidden = models.length > 0;
  const isBaseline = served.data.some(model => model.id === "baseline");
  byId("alone").textContent = (isBaseline ? "The champion is the best baseline itself, and no" : "No")
    + " other model is served, so there is nothing to compare with.";
}

function showExamples() {
  const texts = served.examples.length ? served.examples : champion().classes.slice(0, NUM_CLASSES_SHOWN);
  byId("examples-field").hidden = !texts.length;
  byId("no-examples").hidden = texts.length > 0;
  byId("examples-name").textContent = served.examples.length ? "Examples" : "Names of classes, as examples";
  byId("examples").replaceChildren(...texts.map(text => element("li", {}, element("button", {
    type: "button", className: "quiet small", text, onclick: () => { byId("text").value = text; submit(); },
  }))));
}

const submit = () => byId("form").requestSubmit();

function showError(error) {
  byId("error").textContent = error.message;
  if (error.code !== "model_not_found") return;
  byId("error").textContent += ". The served models have changed; send the text again.";
  showService().catch(() => { });
}

async function sendFeedback(requestIds, label, {status, buttons}) {
  status.textContent = "";
  for (const button of buttons) button.disabled = true;
  try {
    for (const id of requestIds) await call("feedback", {body: {request_id: id, label}});
    status.textContent = "Saved: " + label;
  } catch (error) {
    status.textContent = "Not saved: " + error.message;
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

const seconds = ms => ms < 1000 ? Math.round(ms) + " ms" : (ms / 1000).toFixed(1) + " s";

// A page calls this function once: it shows the service, and sends the text of a link, /#text=...
function start(send) {
  const show = () => {
    byId("error").textContent = "";
    return showService().then(() => true, showError);
  };
  byId("form").addEventListener("submit", event => { event.preventDefault(); send(); });
  byId("key").addEventListener("change", show);
  byId("key").addEventListener("keydown", event => {
    if (event.key === "Enter") { event.preventDefault(); show().then(shown => shown && byId("text").focus()); }
  });
  show().then(shown => {
    const text = new URLSearchParams(location.hash.slice(1)).get("text");
    if (text) byId("text").value = text;
    if (text && shown) submit();
  });
}
