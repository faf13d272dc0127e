"""Reads Anthropic message requests; what its API refuses is refused in its words."""

from typing import Any, Final

from service.simulator.anthropic_errors import invalid, missing, not_json
from service.simulator.asks import Ask, Tool
from service.simulator.reading import join_texts, read_object


def read_messages(body: bytes, *, counting: bool = False) -> Ask:
    """Return what a body of POST /v1/messages asks for. Raises Refusal.

    With `counting`, the body is one of …/count_tokens, which needs no `max_tokens`.
    """
    data = read_object(body, not_json)
    model = data.get("model")
    if model is None:
        raise missing("model")
    if not isinstance(model, str):
        raise invalid("model: Input should be a valid string")
    texts, last_user_text, tokens = _read_turns(data)
    max_tokens = data.get("max_tokens")
    if not counting:
        if max_tokens is None:
            raise missing("max_tokens")
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
            raise invalid("max_tokens: Input should be a valid integer")
        if max_tokens < 1:
            raise invalid("max_tokens: Input should be greater than or equal to 1")
    temperature = data.get("temperature")
    if temperature is not None and not (isinstance(temperature, int | float) and 0 <= temperature <= 1):
        raise invalid("temperature: range: 0..1")
    stop = data.get("stop_sequences") or ()
    if not isinstance(stop, list | tuple):
        raise invalid("stop_sequences: Input should be a valid list")
    tools = _read_tools(data)
    return Ask(
        model=model,
        texts=texts,
        last_user_text=last_user_text,
        input_tokens=tokens,
        max_tokens=max_tokens,
        stop=tuple(stop),
        stream=bool(data.get("stream")),
        tools=tools,
        tool_choice=_read_tool_choice(data.get("tool_choice")),
        schema=_read_schema(data),
    )


_ROLES: Final = ("user", "assistant", "system")


def _read_turns(data: dict[str, Any]) -> tuple[list[str], str, int]:
    messages = data.get("messages")
    if messages is None:
        raise missing("messages")
    if not isinstance(messages, list):
        raise invalid("messages: Input should be a valid list")
    if not messages:
        raise invalid("messages: at least one message is required")
    system, tokens = join_texts(data.get("system"))
    texts = ["system", system] if system else []
    asked = ""
    for at, message in enumerate(messages):
        role, content = _read_turn(message, at)
        if not content and not (role == "assistant" and at == len(messages) - 1):
            raise invalid(f"messages.{at}: all messages must have non-empty content")
        text, count = join_texts(content)
        texts += (role, text)
        tokens += count
        asked = text if role == "user" and not _has_tool_result(content) else ""
    return texts, asked, tokens


def _read_turn(message: Any, at: int) -> tuple[str, str | list[Any]]:
    if not isinstance(message, dict):
        raise invalid(f"messages.{at}: Input should be a valid dictionary")
    role = message.get("role")
    if role is None:
        raise missing(f"messages.{at}.role")
    if role not in _ROLES:
        raise invalid(f"messages.{at}.role: Input should be 'user' or 'assistant'")
    content = message.get("content")
    if content is None:
        raise missing(f"messages.{at}.content")
    if not isinstance(content, str | list):
        raise invalid(f"messages.{at}.content: Input should be a valid list")
    return role, content


def _has_tool_result(content: str | list[Any]) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "tool_result" for part in content
    )


def _read_tools(data: dict[str, Any]) -> tuple[Tool, ...]:
    tools = []
    for at, tool in enumerate(data.get("tools") or ()):
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise missing(f"tools.{at}.name")
        if not isinstance(schema := tool.get("input_schema", {"type": "object"}), dict):
            raise invalid(f"tools.{at}.input_schema: Input should be a valid dictionary")
        tools.append(Tool(tool["name"], schema))
    return tuple(tools)


def _read_tool_choice(choice: Any) -> str:
    if choice is None:
        return "auto"
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "tool" and isinstance(choice.get("name"), str):
        return f"={choice['name']}"
    if kind not in ("auto", "any", "none"):
        raise invalid("tool_choice: Input tag does not match any of the expected tags: 'auto', 'any', 'tool', 'none'")
    return "required" if kind == "any" else str(kind)


def _read_schema(data: dict[str, Any]) -> dict[str, Any] | None:
    wanted = data.get("output_format") or (data.get("output_config") or {}).get("format")
    schema = wanted.get("schema") if isinstance(wanted, dict) else None
    return schema if isinstance(schema, dict) else None
