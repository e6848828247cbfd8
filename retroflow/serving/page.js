"use strict";
// Text of documents and of the model is set as textContent only, so that none of it is ever read as HTML.

const at = (id) => document.getElementById(id);
let key = "", model = "", running = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(where, text, isError) {
  at(where).textContent = text;
  at(where).classList.toggle("error", Boolean(isError));
}

async function ask(path, body, signal) {
  const headers = {"Content-Type": "application/json"};
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = body ? {method: "POST", body: JSON.stringify(body)} : {};
  const response = await fetch(path, {...options, headers, signal});
  if (response.status === 401) at("ask-for-key").hidden = false;
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `the server answers ${response.status}`);
  }
  return response;
}

async function connect() {
  try {
    const [found] = (await (await ask("v1/models")).json()).data;
    const database = found.retroflow.database;
    model = found.id;
    const read = database ? `reads ${database.name}, ${database.chunks.toLocaleString("en")} chunks` : "reads no database";
    at("model").textContent = `${model} ${read}`;
    at("ask-for-key").hidden = true;
  } catch (error) {
    at("model").textContent = error.message;
  }
}

async function* frames(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function write() {
  const body = {
    model, prompt: at("prompt").value, max_tokens: at("tokens").valueAsNumber, stream: true,
    temperature: at("temperature").valueAsNumber, retroflow: {retrieval: at("retrieval").checked},
  };
  running = new AbortController();
  at("write").disabled = true;
  at("stop").disabled = false;
  say("message", "reading");
  const text = element("p", "text"), row = element("div", "row");
  row.append(text);
  at("answer").replaceChildren(row);
  let answer = "", last = null;
  try {
    for await (const frame of frames(await ask("v1/completions", body, running.signal))) {
      if (frame.error) throw new Error(frame.error.message);
      answer += frame.choices.map((choice) => choice.text).join("");
      text.textContent = answer;
      say("message", "writing");
      last = frame;
    }
    show(answer, last.retroflow.sources);
  } catch (error) {
    say("message", error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  } finally {
    at("write").disabled = false;
    at("stop").disabled = true;
  }
}

// One row for each stretch of text that reads the same chunks: the text, and beside it the chunks that begin to be read.
function show(answer, sources) {
  const letters = Array.from(answer);  // the server counts characters, and a string UTF-16 units
  const cuts = [...new Set([0, letters.length, ...sources.flatMap((each) => [each.start, each.end])])].sort((a, b) => a - b);
  const rows = cuts.slice(0, -1).map((start, number) => {
    const end = cuts[number + 1], row = element("div", "row");
    const begun = sources.filter((each) => each.start === start);
    const others = sources.filter((each) => each.start < start && each.end >= end).length;
    const list = element("ul", "sources");
    list.append(...begun.map(described));
    if (others) list.append(element("li", "worth", `and ${others} from above`));
    row.append(element("p", "text", letters.slice(start, end).join("")), list);
    return row;
  });
  at("answer").replaceChildren(...rows);
  const count = sources.length;
  const gain = sources.some((each) => typeof each.influence === "number") ? "; nats: what the text gained over retrieval off" : "";
  say("message", count ? `read ${count} chunk${count === 1 ? "" : "s"}${gain}` : "read no chunks");
}

function described(source) {
  const item = element("li"), details = element("details"), summary = element("summary");
  summary.append(element("span", "title", source.title || source.document));
  summary.append(element("span", "score", ` score ${source.score.toFixed(3)}`));
  if (typeof source.influence === "number") {
    const gained = source.influence, sign = gained < 0 ? "−" : "+";
    const worth = element("span", `worth ${gained < 0 ? "loss" : "gain"}`, ` ${sign}${Math.abs(gained).toFixed(2)} nats`);
    worth.title = "what the text gained over retrieval off while this was read, with all that was read beside it";
    summary.append(worth);
  }
  details.append(summary);
  if (source.source) details.append(element("p", "origin", source.source));
  details.append(element("p", "", source.text));
  item.append(details);
  return item;
}

async function search() {
  say("search-message", "searching");
  try {
    const {results} = await (await ask("v1/retrieval/search", {query: at("query").value, k: 5})).json();
    at("results").replaceChildren(...results.map(described));
    say("search-message", results.length ? "" : "nothing found");
  } catch (error) {
    say("search-message", error.message, true);
  }
}

function on(form, act) {
  at(form).addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

on("write-form", write);
on("search-form", search);
on("key-form", () => {
  key = at("key").value.trim();
  connect();
});
at("stop").addEventListener("click", () => running?.abort());
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !at("write").disabled) write();
});
connect();
