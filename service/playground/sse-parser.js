/**
 * Reads text/event-stream by the rules of the HTML Living Standard, section 9.2.6 ("Interpreting an event stream").
 * Knows lines and fields only; what an event means is decided in transports.js.
 */

/**
 * @typedef {{type: string, data: string, lastEventId: string}} ServerEvent
 * `type` is "message" when the stream names none.
 */

export class SseParser {
  #onEvent;
  #line = "";
  #atStart = true;
  #afterCr = false;
  #type = "";
  #data = [];
  #id = "";
  #lastEventId = "";

  /** Milliseconds the stream asked to wait before reconnecting, or null. Reported only: this page never reconnects. */
  retry = null;

  /** @param {(event: ServerEvent) => void} onEvent called for each complete event, in order. */
  constructor(onEvent) {
    this.#onEvent = onEvent;
  }

  /**
   * Take decoded text, cut anywhere. An event that is incomplete when the stream ends is never dispatched,
   * so there is no method to end the parser: drop it.
   */
  push(text) {
    let rest = text;
    if (this.#atStart && rest !== "") {
      this.#atStart = false;
      if (rest.startsWith("\uFEFF")) rest = rest.slice(1);
    }
    // CR LF is one line end even when the two characters arrive in different pieces.
    if (this.#afterCr && rest !== "") {
      this.#afterCr = false;
      if (rest.startsWith("\n")) rest = rest.slice(1);
    }
    const lineEnd = /\r\n|\r|\n/g;
    let from = 0;
    for (let match = lineEnd.exec(rest); match; match = lineEnd.exec(rest)) {
      const line = this.#line + rest.slice(from, match.index);
      this.#line = "";
      from = lineEnd.lastIndex;
      if (match[0] === "\r" && from === rest.length) this.#afterCr = true;
      this.#takeLine(line);
    }
    this.#line += rest.slice(from);
  }

  #takeLine(line) {
    if (line === "") {
      this.#dispatch();
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
  }

  #dispatch() {
    const data = this.#data;
    const type = this.#type || "message";
    this.#lastEventId = this.#id;
    this.#data = [];
    this.#type = "";
    if (data.length > 0) this.#onEvent({ type, data: data.join("\n"), lastEventId: this.#lastEventId });
  }
}

/**
 * Read a fetch body as server events; leaving the loop early cancels the body.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* readEvents(body) {
  let ready = [];
  const parser = new SseParser((event) => ready.push(event));
  // ignoreBOM hands the mark on instead of dropping it: the parser strips exactly one, as the standard says.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const reader = body.getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      parser.push(decoder.decode(value, { stream: true }));
      const events = ready;
      ready = [];
      yield* events;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
