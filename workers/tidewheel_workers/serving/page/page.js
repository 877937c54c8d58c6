// The gateway's page: a chat on the ordinary API, and the figures of /figures. The key and the conversation stay in memory.
"use strict";

const POLL_MS = 2000;
const part = (id) => document.getElementById(id);
const messages = [];
let model = "";
let running = null; // the AbortController of the answer that is being written

const headers = () => {
  const key = part("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
};

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// ---- chat

function addTurn(role, text) {
  part("empty").hidden = true;
  const turn = element("article", `turn ${role}`);
  turn.setAttribute("aria-label", role === "user" ? "You" : "Assistant");
  turn.append(element("p", "text", text));
  part("log").append(turn);
  part("log").scrollTop = part("log").scrollHeight;
  return turn;
}

function tell(turn, text, isBad) {
  turn.append(element("p", isBad ? "told bad" : "told", text));
  part("log").scrollTop = part("log").scrollHeight;
}

async function* events(response) {
  // server-sent events, as far as the API uses them: one data line each
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const line = block.split("\n").find((one) => one.startsWith("data:"));
      if (line) yield line.slice(5).trim();
    }
  }
}

async function problem(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the gateway answered ${response.status}`;
  }
}

async function answer(turn) {
  const text = turn.querySelector(".text");
  const began = performance.now();
  let first = 0;
  let usage = null;
  let finish = null;
  const temperature = Number(part("temperature").value);
  const most = Number(part("max-tokens").value);
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    signal: running.signal,
    body: JSON.stringify({
      model,
      messages,
      temperature,
      max_completion_tokens: most,
      stream: true,
      stream_options: { include_usage: true },
    }),
  });
  if (!response.ok) throw new Error(await problem(response));
  for await (const line of events(response)) {
    if (line === "[DONE]") break;
    const event = JSON.parse(line);
    if (event.error) throw new Error(event.error.message);
    usage = event.usage || usage;
    const choice = event.choices[0];
    if (!choice) continue;
    first = first || performance.now();
    finish = choice.finish_reason || finish;
    const log = part("log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    text.textContent += choice.delta.content || "";
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
  if (finish === null) throw new Error("the answer broke off");
  const seconds = (performance.now() - first) / 1000;
  const told = [`first token after ${milliseconds((first - began) / 1000)}`];
  if (usage) {
    told.push(`${usage.completion_tokens} tokens`);
    if (usage.completion_tokens > 1 && seconds > 0) {
      told.push(`${short((usage.completion_tokens - 1) / seconds)} tokens/s`);
    }
  }
  if (finish === "length") told.push("cut at max tokens");
  tell(turn, told.join(" · "));
}

async function send(event) {
  event.preventDefault();
  const prompt = part("prompt").value.trim();
  if (!prompt || running) return;
  if (!model) await refresh();
  part("prompt").value = "";
  messages.push({ role: "user", content: prompt });
  addTurn("user", prompt);
  const turn = addTurn("assistant", "");
  turn.classList.add("running");
  running = new AbortController();
  part("send").hidden = true;
  part("stop").hidden = false;
  const own = messages.length;
  try {
    await answer(turn);
  } catch (error) {
    tell(turn, error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  } finally {
    turn.classList.remove("running");
    running = null;
    part("send").hidden = false;
    part("stop").hidden = true;
    const said = turn.querySelector(".text").textContent;
    // what was cleared meanwhile stays cleared; a question without an answer is not asked again
    if (messages.length === own) {
      if (said) messages.push({ role: "assistant", content: said });
      else messages.pop();
    }
    part("prompt").focus();
  }
}

function clear() {
  if (running) running.abort();
  messages.length = 0;
  for (const turn of part("log").querySelectorAll(".turn")) turn.remove();
  part("empty").hidden = false;
  part("prompt").focus();
}

// ---- figures

const milliseconds = (seconds) =>
  seconds >= 10 ? `${seconds.toFixed(1)} s` : seconds >= 1 ? `${seconds.toFixed(2)} s` : `${short(seconds * 1000)} ms`;

function short(value) {
  if (value >= 10 || Number.isInteger(value)) return value.toFixed(0);
  return value.toFixed(value < 1 ? 2 : 1);
}

const timed = (quantiles) => (quantiles ? milliseconds(quantiles.p50) : "–");
const slowest = (quantiles) => (quantiles ? `p95 ${milliseconds(quantiles.p95)}` : "no stream yet");
const FIGURES = [
  { name: "TTFT", title: "Time to first token", value: (f) => timed(f.ttft_seconds), more: (f) => slowest(f.ttft_seconds), line: "ttft_seconds" },
  { name: "TPOT", title: "Time per output token", value: (f) => timed(f.tpot_seconds), more: (f) => slowest(f.tpot_seconds), line: "tpot_seconds" },
  { name: "Tokens/s", title: "Output tokens per second", value: (f) => short(f.tokens_per_second), more: (f) => `${short(f.requests_per_second)} requests/s`, line: "tokens_per_second" },
  { name: "Open requests", title: "Requests that are being answered", value: (f) => String(f.open_requests), more: () => "", line: "open_requests" },
  { name: "P/D ratio", title: "Prefill to decode pods that serve", value: (f) => f.ratio || "–", more: (f) => `${f.prefill} prefill, ${f.decode} decode` },
  { name: "Groups", title: "Groups that serve", value: (f) => String(f.groups), more: () => "" },
  { name: "Rejections", title: "Questions that busy servers declined", value: (f) => String(f.rejections), more: (f) => `${f.shed} requests shed`, line: "rejections" },
  { name: "Re-forwards", title: "Requests sent anew after a loss", value: (f) => String(f.reforwards), more: (f) => `${f.interrupted} broken off`, line: "reforwards" },
];

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function drawLine(picture, values) {
  const top = Math.max(...values.filter((value) => value !== null), 0) || 1;
  const step = 100 / Math.max(values.length - 1, 1);
  const place = (value, i) => `${(i * step).toFixed(2)} ${(29 - (27 * value) / top).toFixed(2)}`;
  const points = values.map((value, i) => (value === null ? null : place(value, i))).filter((one) => one !== null);
  const line = points.length ? `M${points.join("L")}` : "";
  const area = points.length ? `M${points[0].split(" ")[0]} 30L${points.join("L")}V30Z` : "";
  // a line over gaps says less than it seems to, so what was measured is marked
  const dots = points.length < values.length ? points.map((one) => `M${one}h0`).join("") : "";
  for (const [name, path] of Object.entries({ area, line, dots })) picture.querySelector(`.${name}`).setAttribute("d", path);
}

function layFigures() {
  for (const figure of FIGURES) {
    const card = element("div", "figure");
    card.dataset.name = figure.name;
    const term = element("dt", "", figure.name);
    term.title = figure.title;
    const said = element("dd");
    said.append(element("span", "value", "–"), element("span", "more", ""));
    if (figure.line) {
      const picture = svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
      picture.append(...["area", "line", "dots"].map((name) => svg("path", { class: name })));
      said.append(picture);
    }
    card.append(term, said);
    part("figures").append(card);
  }
}

function showFigures(figures) {
  FIGURES.forEach((figure, i) => {
    const card = part("figures").children[i];
    card.querySelector(".value").textContent = figure.value(figures);
    card.querySelector(".more").textContent = figure.more(figures);
    if (figure.line) drawLine(card.querySelector("svg"), figures.history[figure.line]);
  });
}

function showState(kind, text, note = "") {
  // these are read aloud when they change, so they are touched only then
  if (part("state").textContent !== text) {
    part("state").className = `state ${kind}`;
    part("state").textContent = text;
  }
  if (part("figures-note").textContent !== note) {
    part("figures-note").hidden = !note;
    part("figures-note").textContent = note;
  }
}

async function refresh() {
  try {
    const response = await fetch("/figures", { headers: headers() });
    if (response.status === 401) {
      showState("busy", "key needed", "Give an API key below the message to see the figures and to chat.");
      return;
    }
    if (!response.ok) throw new Error(await problem(response));
    const figures = await response.json();
    model = figures.model;
    part("model").textContent = model;
    showFigures(figures);
    if (figures.groups) showState("good", "serving");
    else showState("busy", "no group is ready", "Requests wait until a group of prefill and decode pods is ready.");
  } catch (error) {
    showState("bad", "unreachable", `The figures cannot be read: ${error.message}`);
  }
}

async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, POLL_MS);
}

layFigures();
part("form").addEventListener("submit", send);
part("stop").addEventListener("click", () => running && running.abort());
part("clear").addEventListener("click", clear);
part("key").addEventListener("change", refresh);
part("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
poll();
