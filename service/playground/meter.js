/** Times one answer as the page sees it; milliseconds from performance.now(). */

export class Meter {
  sentAt = null;
  firstAt = null;
  lastAt = null;
  endedAt = null;

  /** Milliseconds after `sentAt` of each arrival that carried text. */
  arrivals = [];

  sent(now = performance.now()) {
    this.sentAt = now;
  }

  text(now = performance.now()) {
    this.firstAt ??= now;
    this.lastAt = now;
    this.arrivals.push(now - this.sentAt);
  }

  ended(now = performance.now()) {
    this.endedAt = now;
  }

  /** From the request being sent to its first text (a ticket fetched beforehand does not count), or null. */
  get timeToFirstTokenMs() {
    return this.firstAt === null ? null : this.firstAt - this.sentAt;
  }

  get elapsedMs() {
    return this.sentAt === null ? 0 : (this.endedAt ?? performance.now()) - this.sentAt;
  }

  /**
   * (output tokens - 1) over (last - first arrival): the inverse of time per output token, waiting left out.
   * Null when it is undefined: fewer than two tokens, or all of them in one arrival.
   */
  tokensPerSecond(outputTokens) {
    const span = this.lastAt - this.firstAt;
    return outputTokens > 1 && span > 0 ? ((outputTokens - 1) * 1000) / span : null;
  }
}
