"""A page for people at `/` of a chat model: who answers and why, and a conversation with it as the words come."""

from serving.style import STYLE

_CSS = """
body { display: flex; flex-direction: column; min-height: 100vh; min-height: 100dvh; max-width: 46rem;
  padding-bottom: 0; }
.verdict { border-left: .3rem solid var(--chosen); background: var(--panel); padding: .7rem 1rem; margin: 1rem 0 0; }
ol { list-style: none; margin: 0; padding: 1.5rem 0; flex: 1; display: flex; flex-direction: column; gap: .9rem; }
li { max-width: 88%; padding: .6rem .9rem; border-radius: .8rem; white-space: pre-wrap; background: var(--panel);
  align-self: flex-start; border-bottom-left-radius: .2rem; }
li.user { align-self: flex-end; background: var(--chosen); color: var(--paper); border-radius: .8rem .8rem .2rem; }
li .soft { display: block; margin-top: .3rem; }
li[aria-busy=true] span:first-child::after { content: "\\2026"; opacity: .6; }
form { position: sticky; bottom: 0; background: var(--paper); padding: .6rem 0 1rem;
  border-top: 1px solid var(--line); }
label { display: block; margin: .4rem 0 .3rem; }
textarea, input { width: 100%; font: inherit; padding: .6rem; color: inherit; background: var(--panel);
  border: 1px solid var(--line); border-radius: .3rem; }
textarea { resize: vertical; }
button { font: inherit; padding: .5rem 1.2rem; margin: .6rem .4rem 0 0; border: 0; border-radius: .3rem;
  cursor: pointer;  background: var(--chosen); color: var(--paper); }
button.quiet { background: none; color: inherit; box-shadow: inset 0 0 0 1px var(--line); }
.wrong { margin: .6rem 0 0; } .wrong:empty { display: none; }
@media (max-width: 34rem) { .keys { display: none; } }
@media print { form { display: none; } li { break-inside: avoid; max-width: none; } body { max-width: none; } }
"""

# All that comes from elsewhere is put in as text, never as HTML; nothing is loaded from anywhere but this service.
_BODY = """
<h1 id="name">Tailorbird</h1>
<p class="soft" id="version">asking who answers...</p>
<p class="verdict" id="verdict" hidden></p>
<ol id="said" role="log" aria-label="Conversation"></ol>
<form id="ask">
<div id="locked" hidden><label for="key">API key</label><input id="key" type="password" autocomplete="off"></div>
<label for="text">Your message</label>
<textarea id="text" rows="2" maxlength="20000" required></textarea>
<button id="go">Send</button><button id="stop" type="button" hidden>Stop</button><button id="anew" type="button"
 class="quiet" hidden>Begin anew</button> <span class="soft keys">Enter sends, Shift + Enter begins a line, Escape
 stops</span>
<p class="wrong" id="wrong" role="alert"></p>
</form>
"""

_SCRIPT = """
"use strict";
const at = id => document.getElementById(id);
const base = location.pathname.replace(/\\/$/, "") + "/v1/";
let turns = [], stopper = null, known = false;

async function call(path, body, signal) {
  const headers = {"content-type": "application/json"};
  if (at("key").value) headers.authorization = "Bearer " + at("key").value;
  const asked = body ? {method: "POST", body: JSON.stringify(body), headers, signal} : {headers};
  const answer = await fetch(base + path, asked);
  if (answer.ok) return answer;
  if (answer.status === 401) {
    at("locked").hidden = false;
    at("key").focus();
    if (!headers.authorization) throw new Error("Who asks here needs an API key.");
  }
  let told = answer.status + " " + answer.statusText;
  try { told = (await answer.json()).error.message; } catch { }  // Serve's own refusals are no JSON
  throw new Error(told);
}

async function about() {
  const champion = (await (await call("models")).json()).data.find(model => model.id === "champion");
  known = true;
  document.title = at("name").textContent = champion.name;
  at("version").textContent = champion.version + " (" + champion.kind + ") answers";
  at("verdict").textContent = champion.verdict || "";
  at("verdict").hidden = !champion.verdict;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  while (true) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (kept + value).split("\\n\\n");
    kept = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

function bubble(role, text) {
  const [made, said, note] = ["li", "span", "span"].map(kind => document.createElement(kind));
  made.className = role;
  note.className = "soft";
  said.textContent = text;
  made.append(said);
  at("said").append(made);
  made.scrollIntoView({block: "end"});
  return {made, said, note: text => { note.textContent = text; made.append(note); }};
}

function busy(is) {
  at("go").hidden = is;
  at("stop").hidden = !is;
  at("anew").hidden = is || !at("said").children.length;
}

async function ask(event) {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || stopper) return;
  at("wrong").textContent = "";
  stopper = new AbortController();
  busy(true);
  const mine = bubble("user", text);
  at("text").value = "";
  const theirs = bubble("assistant", "");
  theirs.made.setAttribute("aria-busy", "true");
  const messages = [...turns, {role: "user", content: text}];
  let whole = "", ended = false;
  try {
    if (!known) await about();
    const answer = await call("chat/completions", {messages, stream: true}, stopper.signal);
    for await (const event of events(answer)) {
      if (event === "[DONE]") { ended = true; break; }
      const told = JSON.parse(event);
      if (told.error) throw new Error(told.error.message);
      const choice = told.choices[0];
      if (choice && choice.delta.content) theirs.said.textContent = whole += choice.delta.content;
      if (choice && choice.finish_reason)
        theirs.note(told.version + (choice.finish_reason === "length" ? ", cut where it had all its tokens" : ""));
      if (innerHeight + scrollY > document.body.scrollHeight - 200) theirs.made.scrollIntoView({block: "end"});
    }
    if (!ended) throw new Error("the answer broke off");
  } catch (error) {
    if (error.name === "AbortError") theirs.note("stopped");
    else at("wrong").textContent = error.message;
  } finally {
    theirs.made.removeAttribute("aria-busy");
    if (whole) turns = [...messages, {role: "assistant", content: whole}];
    else { mine.made.remove(); theirs.made.remove(); at("text").value ||= text; }  // to be sent again
    stopper = null;
    busy(false);
    if (document.activeElement !== at("key")) at("text").focus();
  }
}

at("ask").addEventListener("submit", ask);
at("key").addEventListener("change", () => {
  at("wrong").textContent = "";
  about().catch(error => { at("wrong").textContent = error.message; });
});
at("stop").addEventListener("click", () => stopper && stopper.abort());
at("anew").addEventListener("click", () => {
  turns = [];
  at("said").replaceChildren();
  busy(false);
  at("text").focus();
});
at("text").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
document.addEventListener("keydown", event => { if (event.key === "Escape" && stopper) stopper.abort(); });
about().then(() => {
  const given = new URLSearchParams(location.hash.slice(1)).get("text");  // a link to an answer: /#text=...
  if (given) { at("text").value = given; at("ask").requestSubmit(); }
}).catch(error => { at("wrong").textContent = error.message; });
"""

PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:">
<link rel="icon" href="data:,">
<title>Tailorbird</title>
<style>{STYLE}{_CSS}</style>
</head>
<body>
{_BODY}
<script>{_SCRIPT}</script>
</body>
</html>
""".encode()
