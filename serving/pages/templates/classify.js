// The page of a classifier. The models answer one after the other, so that neither waits for the other one.
const NUM_SCORES = 5;

// Requests name a version: those for the champion would count in drift, audits and experiments.
const about = model => "Classifier with " + model.classes.length + " classes";

async function ask(model, text) {
  const began = performance.now();
  const answer = await (await call("classify", {body: {input: text, model: model.version, scores: true}})).json();
  return {...answer, ...answer.results[0], ms: performance.now() - began, by: model};
}

const percent = score => score === null ? "confidence not known" : (100 * score).toFixed(1) + "%";

function card(answer) {
  const likely = Object.entries(answer.scores || {[answer.label]: answer.score});
  likely.sort((first, second) => second[1] - first[1]);
  const rows = likely.slice(0, NUM_SCORES).map(([label, score]) => {
    const bar = element("div");
    bar.style.width = 100 * score + "%";
    const track = element("div", {className: "track"}, bar);
    track.setAttribute("aria-hidden", "true");
    return element("li", {}, element("span", {text: label}), element("span", {text: percent(score)}), track);
  });
  const facts = ["answered in " + seconds(answer.ms)];
  if (answer.by.cost) facts.push("costs " + answer.by.cost);
  if (answer.answered_by) facts.push("by the " + answer.answered_by + " part" + (answer.fallback ? " (fallback)" : ""));
  if (answer.reported_model) facts.push("endpoint: " + answer.reported_model);
  return element("section", {className: answer.by.id === "champion" ? "champion" : "other"},
    element("h2", {text: answer.by.description}),
    element("p", {className: "soft version", text: roleOf(answer.by) + ": " + answer.version}),
    element("ul", {className: "scores"}, ...rows),
    element("p", {className: "soft measured"}, ...facts.map(text => element("span", {text}))));
}

function showAgreement(answers) {
  const several = answers.length > 1, agree = several && answers[0].label === answers[1].label;
  const text = !several ? "" : agree ? "Both models answer: " + answers[0].label : "The models disagree.";
  byId("agreement").replaceChildren(...(text ? [element("span", {className: "state " + (agree ? "passes" : "open"), text})] : []));
}

function showFeedback(answers) {
  byId("feedback").hidden = !served.feedback || !answers.length;
  byId("saved").textContent = "";
  const labels = [...new Set(answers.map(answer => answer.label))];
  const rest = champion().classes.filter(label => !labels.map(String).includes(label));
  const ids = answers.map(answer => answer.request_id);
  const buttons = [];
  const send = label => sendFeedback(ids, label, {status: byId("saved"), buttons});
  buttons.push(...labels.map(label =>
    element("button", {type: "button", className: "quiet small", text: label, onclick: () => send(label)})));
  const another = element("select", {ariaLabel: "Another class"}, element("option", {value: "", text: "another class"}),
    ...rest.map(label => element("option", {value: label, text: label})));
  buttons.push(another, element("button", {type: "button", className: "quiet small", text: "Send",
    onclick: () => { if (another.value) send(another.value); else another.focus(); }}));
  byId("labels").replaceChildren(...(rest.length ? buttons : buttons.slice(0, labels.length)));
}

// The error of one model, if the other one has answered.
const named = ({model, error}) => Object.assign(error, {message: roleOf(model) + ": " + error.message});

async function classify() {
  if (byId("go").disabled) return;
  byId("go").disabled = true;
  byId("error").textContent = "";
  try {
    if (!served) await showService();
    const models = [champion(), ...(compared() ? [compared()] : [])], text = byId("text").value;
    const answers = [], failures = [];
    for (const model of models) {
      await ask(model, text).then(answer => answers.push(answer), error => failures.push({model, error}));
    }
    byId("both").replaceChildren(...answers.map(card));
    showAgreement(answers);
    showFeedback(answers);
    if (failures.length) throw answers.length ? named(failures[0]) : failures[0].error;
  } catch (error) {
    showError(error);
  } finally {
    byId("go").disabled = false;
  }
}

byId("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
});
byId("other").addEventListener("change", () => { if (byId("both").children.length && byId("text").value) submit(); });
start(classify);
