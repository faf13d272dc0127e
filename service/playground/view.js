/** Draws turns of a conversation. Text from a model reaches the page as text nodes only, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Width of the rhythm strip in its own units; one arrival column is 2 units wide. */
const STRIP_WIDTH = 600;
const STRIP_MIDDLE = 10;

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function svgPath(name) {
  const node = document.createElementNS(SVG, "path");
  node.setAttribute("class", name);
  return node;
}

/** The arrivals of one answer on a time axis: a thin line while waiting, then a mark for each piece of text. */
class Rhythm {
  #wait = svgPath("wait");
  #marks = svgPath("marks");
  #scale = element("span");

  constructor() {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${STRIP_WIDTH} ${2 * STRIP_MIDDLE}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.append(this.#wait, this.#marks);
    // The figures below say the same in words.
    this.node = element("div", { class: "rhythm", "aria-hidden": "true" }, svg, this.#scale);
  }

  draw(meter) {
    const total = Math.max(meter.elapsedMs, 1);
    const position = (ms) => (ms / total) * (STRIP_WIDTH - 4) + 2;
    const firstMs = meter.timeToFirstTokenMs ?? total;
    this.#wait.setAttribute("d", `M2 ${STRIP_MIDDLE}H${position(firstMs).toFixed(1)}`);
    const columns = new Map();
    for (const ms of meter.arrivals) {
      const column = Math.round(position(ms) / 2) * 2;
      columns.set(column, (columns.get(column) ?? 0) + 1);
    }
    const fullest = Math.max(...columns.values(), 1);
    let path = "";
    for (const [x, count] of columns) {
      const half = 3 + 6 * (count / fullest);
      path += `M${x} ${STRIP_MIDDLE - half}V${STRIP_MIDDLE + half}`;
    }
    this.#marks.setAttribute("d", path);
    this.#scale.textContent = seconds(total);
  }
}

export function seconds(ms) {
  return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
}

function count(value) {
  return Number.isFinite(value) ? String(value) : "–";
}

/** One prompt and its answer. */
export class Turn {
  #meter;
  #pending = "";
  #text = document.createTextNode("");
  #rhythm = new Rhythm();
  #facts = {};
  #answer;

  /** Everything received so far, exactly. */
  text = "";

  /**
   * @param {{prompt: string, model: string, transport: string, meter: import("./meter.js").Meter,
   *   onCode: () => void, onCopy: (text: string) => void}} options
   */
  constructor({ prompt, model, transport, meter, onCode, onCopy }) {
    this.#meter = meter;
    const fact = (name, label, title, value = "–") => {
      const node = element("dd", { "data-fact": name }, value);
      this.#facts[name] = node;
      return element("div", { title }, element("dt", {}, label), node);
    };
    this.requestId = element("button", {
      type: "button",
      class: "request-id",
      title: "Copy the request id",
      onclick: () => onCopy(this.requestId.textContent),
    });
    const facts = element(
      "dl",
      { class: "facts" },
      fact("ttft", "first token", "From the request being sent to its first text; the fetch of a ticket is left out"),
      fact("speed", "tokens/s", "(Output tokens − 1) over the time from first to last text"),
      fact("tokens", "tokens in → out", "As the service counted them"),
      fact("finish", "finish", "Why the model stopped"),
      fact("transport", "transport", "How the answer travelled", transport),
      element(
        "div",
        { class: "request" },
        element("dt", {}, "request id"),
        element("dd", { "data-fact": "request-id" }, "–"),
      ),
    );
    this.#answer = element("div", { class: "text", "data-part": "answer" });
    this.#answer.append(this.#text);
    const body = element(
      "div",
      { class: "answer" },
      this.#answer,
      this.#rhythm.node,
      element(
        "div",
        { class: "figures" },
        facts,
        element("button", { type: "button", class: "quiet small", onclick: onCode }, "Code"),
      ),
    );
    this.node = element(
      "li",
      { class: "turn", "data-state": "waiting" },
      element("h2", {}, "You"),
      element("p", { class: "prompt" }, prompt),
      element("h2", {}, model),
      body,
    );
  }

  add(text) {
    this.text += text;
    this.#pending += text;
    this.node.dataset.state = "streaming";
  }

  /** Put on the page what has come since the last time: once a frame, so a fast answer costs one layout a frame. */
  paint() {
    if (this.#pending !== "") {
      this.#text.appendData(this.#pending);
      this.#pending = "";
    }
    const ttft = this.#meter.timeToFirstTokenMs;
    if (ttft !== null) this.#facts.ttft.textContent = `${Math.round(ttft)} ms`;
    this.#rhythm.draw(this.#meter);
  }

  showRequestId(requestId) {
    if (!requestId) return;
    this.requestId.textContent = requestId;
    this.node.querySelector("[data-fact=request-id]").replaceChildren(this.requestId);
  }

  showUsage(usage) {
    const speed = this.#meter.tokensPerSecond(usage.completion_tokens);
    this.#facts.speed.textContent = speed === null ? "–" : speed.toFixed(1);
    const tokens = `${count(usage.prompt_tokens)} → ${count(usage.completion_tokens)}`;
    this.#facts.tokens.textContent = usage.estimated ? `≈ ${tokens}` : tokens;
    if (usage.finish_reason) this.#facts.finish.textContent = usage.finish_reason;
    this.showRequestId(usage.request_id);
  }

  complete() {
    this.#end("complete");
    if (this.text === "") this.#note("The model answered with no text.");
  }

  stopped() {
    this.#end("stopped");
    this.#note("Stopped. The answer is incomplete.");
  }

  /**
   * @param {import("./transports.js").Problem} problem
   * @param {(() => void) | null} onFetch sends the prompt again over fetch
   */
  failed({ fields, seenBy }, onFetch) {
    this.#end("error");
    const line = [fields.status, fields.code]
      .filter((part) => part !== undefined && part !== null && part !== "")
      .join(" ");
    const box = element(
      "div",
      { class: "problem", "data-part": "problem" },
      element(
        "p",
        { class: "problem-line" },
        line,
        element("span", {}, seenBy === "page" ? "seen by this page" : "said by the service"),
      ),
      element("p", { class: "problem-title" }, fields.title ?? "Error"),
    );
    if (fields.detail && fields.detail !== fields.title) box.append(element("p", {}, String(fields.detail)));
    if (Array.isArray(fields.errors))
      box.append(element("ul", {}, ...fields.errors.map((error) => element("li", {}, fieldError(error)))));
    if (fields.retry_after) box.append(element("p", {}, `Try again after ${fields.retry_after} s.`));
    if (this.text !== "") box.append(element("p", { class: "incomplete" }, "The text above is incomplete."));
    if (onFetch)
      box.append(
        element(
          "button",
          { type: "button", class: "quiet small", onclick: onFetch },
          "Send again over fetch, which shows the reason",
        ),
      );
    this.#answer.after(box);
    this.showRequestId(fields.request_id);
  }

  #note(text) {
    this.#answer.after(element("p", { class: "note", "data-part": "note" }, text));
  }

  #end(state) {
    this.#meter.ended();
    this.paint();
    this.node.dataset.state = state;
  }
}

/** One entry of a problem's `errors`: the field and what is wrong with it. */
function fieldError(error) {
  if (typeof error !== "object" || error === null) return String(error);
  const place = error.field ?? error.pointer ?? error.name ?? (Array.isArray(error.loc) ? error.loc.join(".") : "");
  return [place, error.message ?? error.detail ?? error.msg ?? ""].filter(Boolean).join(": ");
}

/** Copy, also where the page is not a secure context and the clipboard API is absent. Resolves to whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const holder = element("textarea", { class: "visually-hidden", "aria-hidden": "true" });
    holder.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(holder);
    const focused = document.activeElement;
    holder.select();
    const done = document.execCommand("copy");
    holder.remove();
    focused?.focus();
    return done;
  }
}
