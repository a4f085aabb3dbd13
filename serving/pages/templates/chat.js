// The page of a chat model. Each model has a conversation of its own, with its own answers. Requests name a version:
// those for the champion would count in audits and experiments.
let histories = new Map(), controller = null;

const about = () => "Chat model";

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

function addReply(replies, model) {
  const content = element("p", {className: "content"}), note = element("p", {className: "soft"});
  const item = element("div", {className: "reply" + (model.id === "champion" ? " champion" : ""), ariaBusy: "true"},
    element("h2", {text: roleOf(model) + ": " + model.description}), content, note);
  replies.append(item);
  return {item, content, note};
}

function addButtons(reply, id) {
  const status = element("span", {className: "soft", role: "status"});
  const button = (text, onclick) => element("button", {type: "button", className: "quiet small", text, onclick});
  const row = element("div", {className: "buttons"}, button("Copy", () => copy(reply.content, status)));
  if (served.feedback && id) {
    const marks = [["Good", "good"], ["Bad", "bad"]].map(([text, label]) =>
      button(text, () => sendFeedback([id], label, {status, buttons: marks})));
    row.append(...marks);
  }
  row.append(status);
  reply.item.append(row);
}

// Scroll to the end, unless the reader has scrolled up.
function stayAtEnd() {
  if (innerHeight + scrollY > document.body.scrollHeight - 300) scrollTo(0, document.body.scrollHeight);
}

// Without TLS, a page of another machine has no clipboard: the answer is selected instead.
async function copy(content, status) {
  try {
    await navigator.clipboard.writeText(content.textContent);
    status.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(content);
    status.textContent = "Selected; press Ctrl + C";
  }
}

// Return the text; on an error, throw it with the text that came before.
async function answer(model, reply, question, signal) {
  const messages = [...(histories.get(model.digest) || []), {role: "user", content: question}];
  const began = performance.now(), facts = [];
  let whole = "", first = 0, id = "", ended = false;
  try {
    const body = {messages, model: model.version, stream: true, stream_options: {include_usage: true}};
    for await (const data of events(await call("chat/completions", {body, signal}))) {
      if (data === "[DONE]") { ended = true; break; }
      const chunk = JSON.parse(data), choice = chunk.choices && chunk.choices[0];
      if (chunk.error) throw new Error(chunk.error.message);
      id = chunk.id;
      if (choice && choice.delta.content) {
        first ||= performance.now();
        reply.content.textContent = whole += choice.delta.content;
      }
      if (choice && choice.finish_reason) {
        facts.push(chunk.version);
        if (choice.finish_reason === "length") facts.push("cut at the token limit");
        if (choice.answered_by) facts.push("by the " + choice.answered_by + " part" + (choice.fallback ? " (fallback)" : ""));
        if (choice.reported_model) facts.push("endpoint: " + choice.reported_model);
        if (choice.confidence !== undefined) facts.push("similarity " + choice.confidence.toFixed(2));
      }
      if (chunk.usage) facts.push(chunk.usage.prompt_tokens + " tokens in, " + chunk.usage.completion_tokens + " out");
      stayAtEnd();
    }
    if (!ended) throw new Error("The answer ended before it was complete.");
    facts.push((first ? "first text after " + seconds(first - began) + ", " : "") + "complete after "
      + seconds(performance.now() - began));
    if (model.cost) facts.push("costs " + model.cost);
  } catch (error) {
    if (error.name !== "AbortError") throw Object.assign(error, {whole});
    facts.push("stopped");
  } finally {
    reply.item.ariaBusy = "false";
    reply.note.textContent = facts.join("; ");
    if (whole) {
      histories.set(model.digest, [...messages, {role: "assistant", content: whole}]);
      addButtons(reply, id);
    }
    stayAtEnd();
  }
  return whole;
}

function setBusy(busy) {
  const hadFocus = [byId("go"), byId("stop"), document.body].includes(document.activeElement);
  byId("go").hidden = busy;
  byId("stop").hidden = !busy;
  byId("new").hidden = busy || !byId("messages").children.length;
  byId("examples-field").hidden = byId("messages").children.length > 0 || !byId("examples").children.length;
  byId("no-examples").hidden = byId("messages").children.length > 0 || byId("examples").children.length > 0;
  if (busy && hadFocus) byId("stop").focus();
}

async function send() {
  const text = byId("text").value.trim();
  if (!text || controller) return;
  byId("error").textContent = "";
  controller = new AbortController();
  const replies = element("div", {className: "replies"});
  const items = [element("li", {}, element("div", {className: "user", text})), element("li", {}, replies)];
  let answered = false;
  try {
    if (!served) await showService();
    byId("messages").append(...items);
    setBusy(true);
    byId("text").value = "";
    const models = [champion(), ...(compared() ? [compared()] : [])];
    const answers = models.map(model => answer(model, addReply(replies, model), text, controller.signal));
    items[1].scrollIntoView({block: "nearest"});
    const results = await Promise.allSettled(answers);
    answered = results.some(result => result.value || (result.reason && result.reason.whole));
    const failed = results.find(result => result.status === "rejected");
    if (results.length > 1 && !failed && results[0].value && results[0].value === results[1].value)
      replies.after(element("p", {className: "state passes", text: "Both models give the same answer."}));
    if (failed) throw failed.reason;
  } catch (error) {
    showError(error);
  } finally {
    if (!answered) { for (const item of items) item.remove(); byId("text").value ||= text; }  // to send it again
    controller = null;
    setBusy(false);
    if (document.activeElement !== byId("key")) byId("text").focus();
  }
}

byId("stop").addEventListener("click", () => controller && controller.abort());
byId("new").addEventListener("click", () => {
  histories = new Map();
  byId("messages").replaceChildren();
  setBusy(false);
  byId("text").focus();
});
byId("text").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", event => { if (event.key === "Escape" && controller) controller.abort(); });
start(send);
