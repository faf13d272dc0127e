"""What a call asks for and what it is answered, in terms that both vendors' formats are read into and written from."""

from dataclasses import dataclass
from typing import Any, Literal

from service.simulator.directives import Directives
from service.simulator.text import cut_at_stop, digest, split_pieces, write_json, write_text

Finish = Literal["stop", "length", "stop_sequence", "tools"]

ECHO = "echo:"


class Refusal(Exception):  # noqa: N818 - an answer that the vendor would give, not a defect
    """The vendor's own error for a call: a status, its error object, and lines to add to the head."""

    def __init__(self, status: int, error: dict[str, object], *, headers: str = "", fault: str | None = None) -> None:
        super().__init__(str(error.get("message")))
        self.status = status
        self.error = error
        self.headers = headers
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the caller offers, with the JSON Schema of its arguments."""

    name: str
    schema: dict[str, Any]


@dataclass(slots=True)
class Ask:
    """One validated request for a completion."""

    model: str
    """As the caller wrote it, directives included."""
    texts: list[str]
    """Roles and texts in their order: what the answer is a function of."""
    last_user_text: str
    """Empty when the last message is not the user's words, such as a tool's result."""
    input_tokens: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    choices: int = 1
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or `=` and a tool's name."""
    schema: dict[str, Any] | None = None
    """JSON Schema that the text must fit."""
    include_usage: bool = False
    top_logprobs: int | None = None
    """None without log probabilities."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool; joined, the fragments are its arguments as JSON text."""

    name: str
    fragments: list[str]
    number: int
    """Digest from which ids are made."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a call's answers: tokens of text, or calls of tools."""

    pieces: list[str]
    calls: tuple[ToolCall, ...]
    finish: Finish
    stop_sequence: str | None

    @property
    def chunks(self) -> int:
        """Tokens, each of which a stream sends as one chunk; naming a tool is one."""
        return len(self.pieces) + sum(1 + len(call.fragments) for call in self.calls)


@dataclass(frozen=True, slots=True)
class Answer:
    """All that a call is answered; a function of the seed, the model and the messages."""

    choices: list[Choice]
    input_tokens: int
    cached_tokens: int
    output_tokens: int


def compose(ask: Ask, model: str, directives: Directives, *, seed: int, output_tokens: int) -> Answer:
    """Return the answer to a call; `model` is its name without directives."""
    choices = []
    for index in range(ask.choices):
        number = digest(seed, model, index, *ask.texts)
        choices.append(_compose_choice(ask, directives, number, output_tokens))
    return Answer(
        choices=choices,
        input_tokens=ask.input_tokens,
        cached_tokens=min(directives.cached_tokens or 0, ask.input_tokens),
        output_tokens=sum(choice.chunks for choice in choices),
    )


def _compose_choice(ask: Ask, directives: Directives, number: int, output_tokens: int) -> Choice:
    if ask.tools and (called := _called_tools(ask)):
        calls = tuple(
            ToolCall(
                tool.name, split_pieces(write_json(tool.schema, digest(number, at))), digest(number, at, tool.name)
            )
            for at, tool in enumerate(called)
        )
        return Choice([], calls, "tools", None)
    finish: Finish = "stop"
    if ask.last_user_text.startswith(ECHO):
        # Exactly the rest, however low max_tokens is: tests of framing must not have to raise it.
        pieces = split_pieces(ask.last_user_text[len(ECHO) :], directives.piece_chars)
    else:
        if ask.schema is not None:
            pieces = split_pieces(write_json(ask.schema, number))
        else:
            wanted = output_tokens if directives.tokens is None else directives.tokens
            pieces = write_text(number, wanted if ask.max_tokens is None else min(wanted, ask.max_tokens + 1))
        if ask.max_tokens is not None and len(pieces) > ask.max_tokens:
            pieces = pieces[: ask.max_tokens]
            finish = "length"
    stopped = None
    if ask.stop:
        pieces, stopped = cut_at_stop(pieces, ask.stop)
    return Choice(pieces, (), finish if stopped is None else "stop_sequence", stopped)


def _called_tools(ask: Ask) -> list[Tool]:
    if ask.tool_choice == "none":
        return []
    if ask.tool_choice.startswith("="):
        return [tool for tool in ask.tools if tool.name == ask.tool_choice[1:]]
    named = [tool for tool in ask.tools if tool.name in ask.last_user_text]
    return named or (list(ask.tools[:1]) if ask.tool_choice == "required" else [])
