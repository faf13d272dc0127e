"""What can be set about a simulator as a whole, and its command line; what one call can ask for is in directives.py."""

import argparse
from dataclasses import dataclass

HIGHEST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """How a simulator answers when a call says nothing else. The same options and calls give the same texts."""

    host: str = "127.0.0.1"
    port: int = 9000
    """TCP port; 0 takes a free one, which the line printed at the start names."""
    seed: int = 0
    """Texts, vectors, jitter and chance are functions of it."""
    ttft_ms: float = 50.0
    """Milliseconds from a request fully received to the first token."""
    gap_ms: float = 10.0
    """Milliseconds between tokens; 0 sends all of them as fast as the reader takes them."""
    jitter: float = 0.0
    """Fraction, 0 to 1, by which the time to first token and each gap may be longer or shorter."""
    prefill_us: float = 0.0
    """Microseconds that each input token adds to the time to first token."""
    output_tokens: int = 64
    """Tokens of an answer that `max_tokens` does not cut short."""
    requests_per_minute: int | None = None
    """For each key, a continuous bucket; None is no limit, and no rate limit headers for it."""
    tokens_per_minute: int | None = None
    """Input and output tokens for each key; charged in full when a call is admitted."""
    keys: tuple[str, ...] = ()
    """Keys that are accepted; empty accepts any, and none at all."""
    exit_with_parent: bool = False
    """End when the process that started this one has ended."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one option for each field of SimulatorOptions."""
    given = SimulatorOptions()
    add = parser.add_argument
    add("--host", default=given.host, help="address to listen on (%(default)s)")
    add("--port", type=_port, default=given.port, help="port; 0 takes a free one (%(default)s)")
    add("--seed", type=int, default=given.seed, help="texts are a function of it (%(default)s)")
    add("--ttft-ms", type=float, default=given.ttft_ms, help="time to first token (%(default)s)")
    add("--gap-ms", type=float, default=given.gap_ms, help="time between tokens; 0 bursts (%(default)s)")
    add("--jitter", type=float, default=given.jitter, help="fraction by which both vary (%(default)s)")
    add("--prefill-us", type=float, default=given.prefill_us, help="added to TTFT by each input token (%(default)s)")
    add("--output-tokens", type=int, default=given.output_tokens, help="tokens of an answer (%(default)s)")
    add("--requests-per-minute", type=int, default=None, help="limit for each key (none)")
    add("--tokens-per-minute", type=int, default=None, help="limit for each key (none)")
    add("--key", dest="keys", action="append", default=[], help="accepted key; may be repeated (any key)")
    add("--exit-with-parent", action="store_true", help="end when the parent process ends")


def _port(text: str) -> int:
    # Unchecked, the operating system's library would take the rest of a division by 65536.
    if not text.isdecimal() or int(text) > HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"takes a number from 0 to {HIGHEST_PORT}, not {text!r}")
    return int(text)


def from_arguments(namespace: argparse.Namespace) -> SimulatorOptions:
    """Return the options that a parser given to `add_arguments` has read."""
    return SimulatorOptions(
        host=namespace.host,
        port=namespace.port,
        seed=namespace.seed,
        ttft_ms=namespace.ttft_ms,
        gap_ms=namespace.gap_ms,
        jitter=namespace.jitter,
        prefill_us=namespace.prefill_us,
        output_tokens=namespace.output_tokens,
        requests_per_minute=namespace.requests_per_minute,
        tokens_per_minute=namespace.tokens_per_minute,
        keys=tuple(namespace.keys),
        exit_with_parent=namespace.exit_with_parent,
    )
