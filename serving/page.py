"""A page for people at `/`: who serves and why, and a text answered by pretrained model and champion side by side."""

from serving.style import STYLE

# All that comes from elsewhere is put in as text, never as HTML; nothing is loaded from anywhere but this service.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:">
<link rel="icon" href="data:,">
<title>Tailorbird</title>
<style>STYLE
.verdict { border-left: .3rem solid var(--chosen); background: var(--panel); padding: .7rem 1rem; margin: 1rem 0; }
label { display: block; margin: 1rem 0 .3rem; }
textarea, input { width: 100%; font: inherit; padding: .6rem; color: inherit; background: var(--panel);
  border: 1px solid var(--line); border-radius: .3rem; }
button { font: inherit; padding: .5rem 1.2rem; margin-top: .6rem; border: 0; border-radius: .3rem; cursor: pointer;
  background: var(--chosen); color: var(--paper); }
button:disabled { opacity: .5; }
.both { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin-top: 1.5rem; }
.both section { background: var(--panel); border-radius: .3rem; padding: .8rem 1rem; }
.label { font-size: 1.1rem; font-weight: 600; }
.track { height: .4rem; background: var(--line); border-radius: .2rem; margin: .3rem 0 .6rem; }
.track div { height: 100%; border-radius: .2rem; background: var(--bar); }
.champion .track div { background: var(--chosen); }
@media (max-width: 34rem) { .both { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<h1 id="name">Tailorbird</h1>
<p class="soft" id="version">asking who serves...</p>
<p class="verdict" id="verdict" hidden></p>
<form id="ask">
<label for="text">A text</label>
<textarea id="text" rows="3" maxlength="20000" required></textarea>
<div id="locked" hidden><label for="key">API key</label><input id="key" type="password" autocomplete="off"></div>
<button id="go">Ask</button> <span class="soft">or Ctrl + Enter</span>
</form>
<p class="wrong" id="wrong" role="alert"></p>
<div class="both" id="both" aria-live="polite" hidden>
<section class="pretrained"><h2>Pretrained</h2><div></div></section>
<section class="champion"><h2>Champion</h2><div></div></section>
</div>
<script>
"use strict";
const at = id => document.getElementById(id);
const base = location.pathname.replace(/\\/$/, "") + "/v1/";
let pretrained = false;

async function call(path, body) {
  const headers = {"content-type": "application/json"};
  if (at("key").value) headers.authorization = "Bearer " + at("key").value;
  const asked = body ? {method: "POST", body: JSON.stringify(body), headers} : {headers};
  const answer = await fetch(base + path, asked);
  if (answer.ok) return answer.json();
  if (answer.status === 401) at("locked").hidden = false;
  let told = answer.status + " " + answer.statusText;
  try { told = (await answer.json()).error.message; } catch { }  // Serve's own refusals are no JSON
  throw new Error(told);
}

async function about() {
  const models = (await call("models")).data;
  const champion = models.find(model => model.id === "champion");
  pretrained = models.some(model => model.id === "pretrained");
  document.title = at("name").textContent = champion.name;
  at("version").textContent = champion.version + " (" + champion.kind + ") serves, " +
    champion.classes.length + " classes";
  at("verdict").textContent = champion.verdict || "";
  at("verdict").hidden = !champion.verdict;
}

function element(kind, name, text) {
  const made = document.createElement(kind);
  made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(name, result) {
  const place = document.querySelector("." + name + " div");
  const likely = Object.entries(result.scores).sort((one, other) => other[1] - one[1]).slice(0, 3);
  place.replaceChildren(...likely.flatMap(([label, score], rank) => {
    const track = element("div", "track"), bar = element("div", "");
    bar.style.width = 100 * score + "%";
    track.append(bar);
    const told = element("div", rank ? "soft" : "label", label + "  " + (100 * score).toFixed(1) + " %");
    return [told, track];
  }));
}

async function ask(event) {
  event.preventDefault();
  at("go").disabled = true;
  at("wrong").textContent = "";
  try {
    if (at("verdict").hidden && at("version").textContent.startsWith("asking")) await about();
    const body = {input: at("text").value, scores: true};
    const told = pretrained ? await call("compare", body) : {champion: await call("classify", body)};
    for (const name of ["pretrained", "champion"]) {
      document.querySelector("." + name).hidden = !told[name];
      if (told[name]) show(name, told[name].results[0]);
    }
    at("both").hidden = false;
  } catch (error) {
    at("wrong").textContent = error.message;
  } finally {
    at("go").disabled = false;
  }
}

at("ask").addEventListener("submit", ask);
at("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
about().then(() => {
  const given = new URLSearchParams(location.hash.slice(1)).get("text");  // a link to an answer: /#text=...
  if (given) { at("text").value = given; at("ask").requestSubmit(); }
}).catch(error => { at("wrong").textContent = error.message; });
</script>
</body>
</html>
""".replace("STYLE", STYLE).encode()
