/** Sends one call over EventSource, fetch or a WebSocket and reports what comes back. Knows no element of the page. */

import { readEvents } from "./sse-parser.js";

/**
 * @typedef {import("./snippets.js").Call} Call
 * @typedef {{
 *   sent: () => void,
 *   started: (details: {request_id?: string}) => void,
 *   text: (text: string) => void,
 *   usage: (usage: Record<string, unknown>) => void,
 * }} Sink what a transport reports while an answer runs; `usage` may still come after a stop.
 */

/** What went wrong, as the service said it (problem+json) or, with `seenBy: "page"`, as far as the page can know. */
export class Problem extends Error {
  /** @param {Record<string, unknown>} fields */
  constructor(fields, { seenBy = "service", offerFetch = false } = {}) {
    super(String(fields.title ?? fields.detail ?? "Error"));
    this.fields = fields;
    this.seenBy = seenBy;
    this.offerFetch = offerFetch;
  }
}

/** The reader of this page pressed Stop. */
export class Stopped extends Error {}

const TRUNCATED = {
  code: "truncated",
  title: "The stream was cut",
  detail: "It closed without a usage event and without [DONE], so the answer is not whole.",
};

/** Gives meaning to the events of `GET /stream` and of `POST /chat` with `stream: true`. */
class AnswerReader {
  /** [DONE] was read. */
  ended = false;

  /** The totals were read: the answer is whole, though [DONE] may still follow. */
  haveUsage = false;

  /** Any event was read. */
  any = false;

  #sink;

  constructor(sink) {
    this.#sink = sink;
  }

  /** @throws {Problem} for an `error` event, and for one that cannot be read. */
  take(type, data) {
    this.any = true;
    if (type === "message" && data === "[DONE]") this.ended = true;
    else if (type === "message") this.#sink.text(data);
    // A chunk that SSE cannot carry as it is (it has a CR, or reads "[DONE]") comes as a JSON string.
    else if (type === "text") this.#sink.text(parsed(data));
    else if (type === "usage") {
      this.haveUsage = true;
      this.#sink.usage(parsed(data));
    } else if (type === "error") throw new Problem(parsed(data));
  }
}

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    throw new Problem(
      { code: "unreadable", title: "The service sent an event that is not JSON", detail: json.slice(0, 500) },
      { seenBy: "page" },
    );
  }
}

function bearer(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function problemOf(response) {
  const body = await response.text();
  let fields = null;
  try {
    fields = JSON.parse(body);
  } catch {
    // Not JSON: something between this page and the service answered.
  }
  // /v1 speaks OpenAI's shape, {error: {message, code}}; everything else problem+json.
  if (fields?.error?.message)
    fields = { title: fields.error.type, detail: fields.error.message, code: fields.error.code };
  if (fields === null || typeof fields !== "object")
    fields = { title: response.statusText || "Error", detail: body.slice(0, 500) };
  return new Problem({
    status: response.status,
    request_id: response.headers.get("x-request-id"),
    retry_after: response.headers.get("retry-after"),
    ...fields,
  });
}

async function request(url, options) {
  let response;
  try {
    response = await fetch(url, { ...options, cache: "no-store" });
  } catch (error) {
    if (options?.signal?.aborted) throw new Stopped();
    throw new Problem(
      { code: "no_connection", title: "No answer from the service", detail: `${error.message}. Is it running?` },
      { seenBy: "page" },
    );
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** @returns {Promise<string[]>} the public model names, in the service's order. */
export async function listModels({ base, key }) {
  const response = await request(new URL("v1/models", base), { headers: bearer(key) });
  return (await response.json()).data.map((model) => model.id);
}

/** Exchange the key for a single-use ticket: neither EventSource nor WebSocket can send a header. */
async function takeTicket({ base, key, signal }) {
  const response = await request(new URL("tickets", base), { method: "POST", headers: bearer(key), signal });
  return (await response.json()).ticket;
}

/**
 * `GET /stream` read by the browser's own EventSource: one prompt, no history.
 * EventSource reconnects by itself, which would run the prompt again, so every way out of here closes it.
 * @param {Call} call @param {Sink} sink @param {AbortSignal} signal
 */
export async function sendOverEventSource({ base, key }, call, sink, signal) {
  const ticket = await takeTicket({ base, key, signal });
  if (signal.aborted) throw new Stopped();
  const url = new URL("stream", base);
  url.search = new URLSearchParams({
    prompt: call.messages.at(-1).content,
    model: call.model,
    max_tokens: call.max_tokens,
    temperature: call.temperature,
    ticket,
  });
  const reader = new AnswerReader(sink);
  await new Promise((resolve, reject) => {
    const source = new EventSource(url);
    sink.sent();
    const stop = () => settle(() => reject(new Stopped()));
    const settle = (outcome) => {
      source.close();
      signal.removeEventListener("abort", stop);
      outcome();
    };
    signal.addEventListener("abort", stop);
    const take = (event) => {
      try {
        reader.take(event.type, event.data);
      } catch (problem) {
        settle(() => reject(problem));
        return;
      }
      if (reader.ended) settle(resolve);
    };
    for (const type of ["message", "text", "usage"]) source.addEventListener(type, take);
    source.addEventListener("error", (event) => {
      if (event instanceof MessageEvent) take(event);
      else if (reader.haveUsage) settle(resolve);
      else {
        // Read before settle() closes the source: CLOSED means here that the browser gave up by itself.
        const failure = eventSourceFailure(source.readyState, reader.any);
        settle(() => reject(failure));
      }
    });
  });
}

function eventSourceFailure(readyState, any) {
  if (any) return new Problem(TRUNCATED, { seenBy: "page" });
  const refused = readyState === EventSource.CLOSED;
  const title = refused ? "Refused before the stream began" : "The connection failed before the stream began";
  const known = refused
    ? "The answer was not a 200 with an event stream. EventSource hides its status and body from the page"
    : "EventSource does not tell the page why";
  return new Problem(
    { code: "not_visible_to_eventsource", title, detail: `${known}; asking again would run the prompt again.` },
    { seenBy: "page", offerFetch: true },
  );
}

/**
 * `POST /chat` with `stream: true`, read by this page's own parser: history, a header, errors with their status.
 * @param {Call} call @param {Sink} sink @param {AbortSignal} signal
 */
export async function sendOverFetch({ base, key }, call, sink, signal) {
  sink.sent();
  const response = await request(new URL("chat", base), {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream", ...bearer(key) },
    body: JSON.stringify({ ...call, stream: true }),
    signal,
  });
  sink.started({ request_id: response.headers.get("x-request-id") });
  const reader = new AnswerReader(sink);
  try {
    for await (const { type, data } of readEvents(response.body)) {
      reader.take(type, data);
      if (reader.ended) return;
    }
  } catch (error) {
    if (error instanceof Problem) throw error;
    if (signal.aborted) throw new Stopped();
    throw new Problem(
      { ...TRUNCATED, detail: `${TRUNCATED.detail} The browser says: ${error.message}.` },
      { seenBy: "page" },
    );
  }
  if (!reader.haveUsage) throw new Problem(TRUNCATED, { seenBy: "page" });
}

/** One WebSocket to `/ws`, opened with a ticket at the first call and kept for the following ones. */
export class SocketTransport {
  #onState;
  #socket = null;
  #calls = new Map();
  #count = 0;

  /** @param {(state: {open: boolean, code?: number, reason?: string}) => void} onState */
  constructor(onState) {
    this.#onState = onState;
  }

  /** @param {Call} call @param {Sink} sink @param {AbortSignal} signal */
  async send({ base, key }, call, sink, signal) {
    const socket = await this.#open({ base, key, signal });
    if (signal.aborted) throw new Stopped();
    const id = `turn-${++this.#count}`;
    await new Promise((resolve, reject) => {
      const stop = () => {
        // The entry stays: the service still reports what the stopped answer used.
        socket.send(JSON.stringify({ type: "cancel", id }));
        reject(new Stopped());
      };
      signal.addEventListener("abort", stop, { once: true });
      const leave = (outcome) => {
        signal.removeEventListener("abort", stop);
        this.#calls.delete(id);
        outcome();
      };
      this.#calls.set(id, {
        take: (message) => {
          if (message.type === "started") sink.started(message);
          else if (message.type === "delta") {
            if (!signal.aborted) sink.text(message.text);
          } else if (message.type === "usage") sink.usage(message.usage ?? message);
          else if (message.type === "done") leave(resolve);
          else if (message.type === "error") leave(() => reject(new Problem(problemFields(message))));
        },
        fail: (problem) => leave(() => reject(problem)),
      });
      sink.sent();
      socket.send(JSON.stringify({ type: "chat", id, ...call }));
    });
  }

  close() {
    this.#socket?.close(1000);
  }

  async #open({ base, key, signal }) {
    if (this.#socket?.readyState === WebSocket.OPEN) return this.#socket;
    const url = new URL("ws", base);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("ticket", await takeTicket({ base, key, signal }));
    if (signal.aborted) throw new Stopped();
    const socket = new WebSocket(url);
    await new Promise((resolve, reject) => {
      socket.addEventListener("open", resolve, { once: true });
      socket.addEventListener("close", (event) => reject(closeProblem(event, "The socket did not open")), {
        once: true,
      });
    });
    this.#socket = socket;
    this.#onState({ open: true });
    socket.addEventListener("message", ({ data }) => this.#take(parsed(data)));
    socket.addEventListener("close", (event) => {
      if (this.#socket === socket) this.#socket = null;
      this.#onState({ open: false, code: event.code, reason: event.reason });
      for (const { fail } of [...this.#calls.values()])
        fail(closeProblem(event, "The socket closed before the answer ended"));
    });
    return socket;
  }

  #take(message) {
    const call = this.#calls.get(message.id);
    if (call) call.take(message);
    // An error without an id is about the socket as a whole, so it ends whatever runs on it.
    else if (message.type === "error" && !message.id)
      for (const { fail } of [...this.#calls.values()]) fail(new Problem(problemFields(message)));
  }
}

function problemFields(message) {
  const { type: _type, id: _id, error, problem, ...fields } = message;
  return { ...fields, ...error, ...problem };
}

/** Close codes: RFC 6455 section 7.4.1. */
function closeProblem(event, title) {
  const why = event.reason ? `: ${event.reason}` : event.code === 1006 ? ": no closing handshake" : "";
  return new Problem(
    { code: `close ${event.code}`, title, detail: `Close code ${event.code}${why}.` },
    { seenBy: "page" },
  );
}
