/** The page's state and its wiring: settings, the running answer, the conversation so far. */

import { Meter } from "./meter.js";
import { curl, javascript, python } from "./snippets.js";
import { listModels, Problem, sendOverEventSource, sendOverFetch, SocketTransport, Stopped } from "./transports.js";
import { copyText, seconds, Turn } from "./view.js";

const $ = (id) => document.getElementById(id);
const KEY_STORE = "llm-api.key";
const THEME_STORE = "llm-api.theme";
const OTHER = "\0other";

/** Where the service is: the page's own folder, so that it also works below a path prefix. */
const BASE = new URL(".", document.baseURI).href;

const TRANSPORT_NAMES = { fetch: "SSE fetch", eventsource: "SSE EventSource", websocket: "WebSocket" };

/** A pixel distance from the end within which the reader counts as following the answer. */
const FOLLOW_PX = 60;

/** @type {{prompt: string, answer: string}[]} the turns that later calls carry: those answered, also in part. */
let history = [];

/** @type {{turn: Turn, controller: AbortController} | null} */
let running = null;

/** @type {string | null} what the reader, and not the page, has chosen in the list of models: it outlives a new list. */
let pickedModel = null;

/** @type {{call: object, singlePrompt: boolean} | null} what the code dialog shows */
let shownCall = null;

const socket = new SocketTransport(({ open, code, reason }) => {
  $("socket-state").textContent = open ? "Open" : `Closed with code ${code}${reason ? `: ${reason}` : ""}`;
  $("socket-state").dataset.open = String(open);
});

const SENDERS = {
  fetch: sendOverFetch,
  eventsource: sendOverEventSource,
  websocket: (...args) => socket.send(...args),
};

function say(text) {
  $("status").textContent = text;
}

/** Storage may be forbidden by the browser; the page then forgets, and works. */
function stored(storage, name, value) {
  try {
    if (value === undefined) return window[storage].getItem(name);
    if (value === "") window[storage].removeItem(name);
    else window[storage].setItem(name, value);
  } catch {
    // See above.
  }
  return null;
}

function transport() {
  return document.querySelector("input[name=transport]:checked").value;
}

function model() {
  return $("model").value === OTHER ? $("model-name").value.trim() : $("model").value;
}

function callFor(prompt, kind) {
  const messages = [];
  if (kind !== "eventsource") {
    const system = $("system").value.trim();
    if (system) messages.push({ role: "system", content: system });
    for (const turn of history)
      messages.push({ role: "user", content: turn.prompt }, { role: "assistant", content: turn.answer });
  }
  messages.push({ role: "user", content: prompt });
  return {
    model: model(),
    messages,
    max_tokens: $("max-tokens").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
  };
}

function following() {
  const { scrollTop, scrollHeight, clientHeight } = $("scroll");
  return scrollHeight - scrollTop - clientHeight < FOLLOW_PX;
}

function toEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function paintFrames(turn) {
  if (running?.turn !== turn) return;
  const follow = following();
  turn.paint();
  if (follow) toEnd();
  requestAnimationFrame(() => paintFrames(turn));
}

function showRunning(state) {
  running = state;
  const stopHadFocus = document.activeElement === $("stop");
  $("stop").hidden = state === null;
  $("send").hidden = state !== null;
  if (stopHadFocus) $("prompt").focus();
}

async function send(prompt, kind = transport()) {
  if (running || prompt.trim() === "") return;
  if (!$("settings-form").reportValidity()) return;
  if (model() === "") {
    say("Choose a model first.");
    $("model").focus();
    return;
  }
  const call = callFor(prompt, kind);
  const meter = new Meter();
  const turn = new Turn({
    prompt,
    model: call.model,
    transport: TRANSPORT_NAMES[kind],
    meter,
    onCode: () => openCode(call, kind === "eventsource"),
    onCopy: copyAndSay,
  });
  const controller = new AbortController();
  const conversation = history;
  $("empty").hidden = true;
  $("transcript").append(turn.node);
  showRunning({ turn, controller });
  say(`Answering over ${TRANSPORT_NAMES[kind]}…`);
  toEnd();
  paintFrames(turn);
  let usage = null;
  const sink = {
    sent: () => meter.sent(),
    started: ({ request_id }) => turn.showRequestId(request_id),
    text: (text) => {
      if (text === "") return;
      meter.text();
      turn.add(text);
    },
    usage: (totals) => {
      usage = totals;
      turn.showUsage(totals);
    },
  };
  let follow = true;
  try {
    await SENDERS[kind]({ base: BASE, key: $("key").value }, call, sink, controller.signal);
    follow = following();
    turn.complete();
    const tokens = usage?.completion_tokens ? `with ${usage.completion_tokens} tokens ` : "";
    say(`Answered ${tokens}in ${seconds(meter.elapsedMs)}.`);
  } catch (error) {
    follow = following();
    if (error instanceof Stopped) {
      turn.stopped();
      if (turn.node.isConnected) say("Stopped.");
    } else {
      const problem =
        error instanceof Problem
          ? error
          : new Problem({ code: "page_error", title: "This page failed", detail: String(error) }, { seenBy: "page" });
      turn.failed(problem, problem.offerFetch ? () => send(prompt, "fetch") : null);
      say(`Error: ${problem.message}.`);
    }
  }
  // A new conversation may have been started meanwhile. A failed turn is not sent on, so that it can be asked again.
  if (turn.text !== "" && turn.node.dataset.state !== "error") conversation.push({ prompt, answer: turn.text });
  if (running?.turn === turn) showRunning(null);
  if (follow) toEnd();
}

function stop() {
  running?.controller.abort();
}

function newConversation() {
  stop();
  showRunning(null);
  history = [];
  $("transcript").replaceChildren();
  $("empty").hidden = false;
  say("");
  $("prompt").focus();
}

async function copyAndSay(text) {
  say((await copyText(text)) ? "Copied." : "The browser did not allow copying: select the text instead.");
}

function showCode() {
  const language = document.querySelector("input[name=language]:checked").value;
  const options = { base: BASE, withKey: $("key").value !== "", singlePrompt: shownCall.singlePrompt };
  $("snippet").textContent = { curl, python, javascript }[language](shownCall.call, options);
  $("code-hint").textContent =
    language === "curl" && !options.withKey
      ? "No key is set here, so none is sent."
      : "The key is read from $LLM_API_KEY; it is never part of the code.";
}

function openCode(call, singlePrompt) {
  shownCall = { call, singlePrompt };
  showCode();
  $("code").showModal();
}

function fillModels(names) {
  $("model").replaceChildren(...names.filter((name) => !name.includes("*")).map((name) => new Option(name, name)));
  // A configured pattern such as "team/*" takes any name that fits it, so the name is the caller's to write.
  for (const pattern of names.filter((name) => name.includes("*"))) {
    const option = new Option(pattern, OTHER);
    option.dataset.prefill = pattern.replaceAll("*", "");
    $("model").append(option);
  }
  $("model").append(new Option("Other name…", OTHER));
  const picked = [...$("model").options].find((option) => option.text === pickedModel);
  if (picked) picked.selected = true;
  showModelName();
}

function rememberModel() {
  pickedModel = $("model").selectedOptions[0].text;
}

function showModelName() {
  const other = $("model").value === OTHER;
  $("model-name").hidden = !other;
  const prefill = $("model").selectedOptions[0]?.dataset.prefill;
  if (other && prefill && !$("model-name").value.includes(prefill)) $("model-name").value = prefill;
}

async function loadModels() {
  const problem = $("model-problem");
  try {
    fillModels(await listModels({ base: BASE, key: $("key").value }));
    problem.hidden = true;
  } catch (error) {
    fillModels([]);
    const { status, detail } = error.fields ?? {};
    const reason = [status, detail ?? error.message].filter(Boolean).join(" ");
    problem.textContent = `The list of models did not come: ${reason}`;
    problem.hidden = false;
  }
}

function theme() {
  return (
    document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")
  );
}

function nameThemeButton() {
  $("theme").setAttribute("aria-label", `Switch to the ${theme() === "dark" ? "light" : "dark"} theme`);
}

function fitPrompt() {
  // Where the browser sizes a field by its content the style sheet does it.
  if (CSS.supports("field-sizing", "content")) return;
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight}px`;
}

function submit() {
  if (running) return;
  const prompt = $("prompt").value;
  if (prompt.trim() === "") return;
  $("prompt").value = "";
  fitPrompt();
  send(prompt);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("prompt").addEventListener("keydown", (event) => {
  // `isComposing`: Enter then ends an input method's word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
$("prompt").addEventListener("input", fitPrompt);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !$("code").open) stop();
});
$("stop").addEventListener("click", stop);
$("new-conversation").addEventListener("click", newConversation);
$("suggestions").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  $("prompt").focus();
  send(button.textContent);
});
$("settings-form").addEventListener("submit", (event) => event.preventDefault());
$("model").addEventListener("change", () => {
  rememberModel();
  showModelName();
  if (!$("model-name").hidden) $("model-name").focus();
});
$("model-name").addEventListener("input", rememberModel);
$("key").addEventListener("change", () => {
  stored("sessionStorage", KEY_STORE, $("key").value);
  // The open socket was let in with the former key.
  socket.close();
  loadModels();
});
$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
  stored("localStorage", THEME_STORE, document.documentElement.dataset.theme);
  nameThemeButton();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameThemeButton);
$("open-settings").addEventListener("click", () => {
  const open = $("settings").classList.toggle("open");
  $("open-settings").setAttribute("aria-expanded", String(open));
});
for (const input of document.querySelectorAll("input[name=language]")) input.addEventListener("change", showCode);
$("copy-code").addEventListener("click", async () => {
  $("code-hint").textContent = (await copyText($("snippet").textContent))
    ? "Copied."
    : "The browser did not allow copying: select the code instead.";
});

$("key").value = stored("sessionStorage", KEY_STORE) ?? "";
nameThemeButton();
loadModels();
