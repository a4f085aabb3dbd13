"use strict";
// Updates a page of the console while a run is under way. The reader can pause it. Without scripts, a link does this.
const byId = id => document.getElementById(id);
const seconds = byId("live").dataset.seconds;
let paused = false;

// Make a node equal to another one. Parts that are equal already keep the focus, the selection and the scroll position.
function morph(node, fresh) {
  if (node.isEqualNode(fresh)) return;
  const children = [...node.childNodes], others = [...fresh.childNodes];
  if (node.nodeName !== fresh.nodeName || children.length !== others.length || !children.length) {
    node.replaceWith(document.adoptNode(fresh));
    return;
  }
  for (const {name} of [...node.attributes]) if (!fresh.hasAttribute(name)) node.removeAttribute(name);
  for (const {name, value} of fresh.attributes) node.setAttribute(name, value);
  children.forEach((child, index) => morph(child, others[index]));
}

// What screen readers announce when it changes; numbers and times change all the time.
const stateOf = page => [...page.querySelectorAll("[data-state]")].map(node => node.dataset.state).join("; ");

async function update() {
  const answer = await fetch(location.pathname, {cache: "no-store"});
  if (!answer.ok) throw new Error(answer.status + " " + answer.statusText);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (paused) return;
  const before = stateOf(document), hadFocus = byId("live").contains(document.activeElement);
  for (const id of ["live", "news"]) page.getElementById(id)?.replaceWith(byId(id).cloneNode(true));
  for (const part of ["main", "footer"]) morph(document.querySelector(part), page.querySelector(part));
  const after = stateOf(document);
  if (after !== before) byId("news").textContent = "Now: " + (after || "no run is under way");
  if (hadFocus && !byId("live")) byId("content").focus();
}

function wait() {
  setTimeout(async () => {
    if (!paused && !document.hidden) {
      try {
        await update();
        byId("failed")?.remove();
      } catch (error) {
        if (!byId("failed")) byId("news").insertAdjacentHTML("afterbegin", '<span class="error" id="failed"></span>');
        byId("failed").textContent = "The page could not be updated: " + error.message + ". ";
      }
    }
    if (byId("live")) wait();  // else the run has ended
  }, 1000 * seconds);
}

function showControl() {
  const button = document.createElement("button");
  Object.assign(button, {type: "button", id: "pause", textContent: paused ? "Resume updates" : "Pause updates"});
  byId("live").replaceChildren(button, paused ? "Updates are paused." : "Updated every " + seconds + " s.");
}

document.addEventListener("click", event => {
  if (event.target.id !== "pause") return;
  paused = !paused;
  showControl();
  byId("pause").focus();
});
showControl();
wait();
