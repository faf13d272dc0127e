"""Reads OpenAI chat completion requests; what its API refuses is refused in its words."""

from typing import Any, Final, cast

from service.simulator.asks import Ask, Tool
from service.simulator.openai_errors import invalid, missing, not_json, wrong_type
from service.simulator.reading import join_texts, read_object

_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_MOST_CHOICES: Final = 128
_MOST_STOPS: Final = 4
_MOST_TOP_LOGPROBS: Final = 20
_RANGES: Final = {"temperature": (0, 2), "top_p": (0, 1), "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2)}


def read_chat(body: bytes) -> Ask:
    """Return what a body of POST /v1/chat/completions asks for. Raises Refusal."""
    data = read_object(body, not_json)
    model = read_model(data)
    texts, last_user_text, input_tokens = _read_messages(data)
    for name, (low, high) in _RANGES.items():
        if name in data:
            _check_decimal(data, name, low, high)
    stop = data.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stop) > _MOST_STOPS:
        raise invalid(
            f"Invalid 'stop': array too long. Expected an array with maximum length {_MOST_STOPS}, but got an array "
            f"with length {len(stop)} instead.",
            param="stop",
            code="array_above_max_length",
        )
    wanted = data.get("stream_options") or {}
    if wanted and not data.get("stream"):
        raise invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    return Ask(
        model=model,
        texts=texts,
        last_user_text=last_user_text,
        input_tokens=input_tokens,
        max_tokens=_whole(data, "max_completion_tokens", 1) or _whole(data, "max_tokens", 1),
        stop=stop,
        stream=bool(data.get("stream")),
        choices=_whole(data, "n", 1, _MOST_CHOICES) or 1,
        tools=_read_tools(data),
        tool_choice=_read_tool_choice(data.get("tool_choice")),
        schema=_read_schema(data.get("response_format")),
        include_usage=bool(wanted.get("include_usage")),
        top_logprobs=(_whole(data, "top_logprobs", 0, _MOST_TOP_LOGPROBS) or 0) if data.get("logprobs") else None,
    )


def read_model(data: dict[str, Any]) -> str:
    """Return a body's model, without which OpenAI answers nothing."""
    model = data.get("model")
    if model is None or model == "":
        raise invalid("you must provide a model parameter")
    if not isinstance(model, str):
        raise wrong_type("model", "a string", model)
    return model


def _read_messages(data: dict[str, Any]) -> tuple[list[str], str, int]:
    messages = data.get("messages")
    if messages is None:
        raise missing("messages")
    if not isinstance(messages, list):
        raise wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise invalid(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param="messages",
            code="empty_array",
        )
    texts: list[str] = []
    tokens = 0
    asked = ""
    for at, message in enumerate(messages):
        role, content = _read_message(message, at)
        text, count = join_texts(content)
        for call in message.get("tool_calls") or ():
            text += str(call.get("function", {}).get("arguments"))
        texts += (role, text)
        tokens += count
        asked = text if role == "user" else ""
    return texts, asked, tokens


def _read_message(message: Any, at: int) -> tuple[str, str | list[Any] | None]:
    if not isinstance(message, dict):
        raise wrong_type(f"messages[{at}]", "an object", message)
    role = message.get("role")
    if role is None:
        raise missing(f"messages[{at}].role")
    if role not in _ROLES:
        raise invalid(
            f"Invalid value: '{role}'. Supported values are: {', '.join(map(repr, _ROLES))}.",
            param=f"messages[{at}].role",
            code="invalid_value",
        )
    content = message.get("content")
    if content is None and role != "assistant":
        raise invalid("Invalid value for 'content': expected a string, got null.", param=f"messages[{at}].content")
    if not isinstance(content, str | list | None):
        raise wrong_type(f"messages[{at}].content", "one of a string or array of objects", content)
    return role, content


def _read_tools(data: dict[str, Any]) -> tuple[Tool, ...]:
    tools = []
    for at, tool in enumerate(data.get("tools") or ()):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            raise missing(f"tools[{at}].function")
        if not isinstance(function.get("name"), str):
            raise missing(f"tools[{at}].function.name")
        tools.append(Tool(function["name"], function.get("parameters") or {"type": "object"}))
    return tuple(tools)


def _read_tool_choice(choice: Any) -> str:
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise invalid(
                f"Invalid value: '{choice}'. Supported values are: 'none', 'auto', and 'required'.",
                param="tool_choice",
                code="invalid_value",
            )
        return choice
    if isinstance(choice, dict) and isinstance(name := choice.get("function", {}).get("name"), str):
        return f"={name}"
    raise missing("tool_choice.function.name")


def _read_schema(wanted: Any) -> dict[str, Any] | None:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return {"type": "object", "properties": {"answer": {"type": "string"}, "score": {"type": "integer"}}}
    if kind == "json_schema":
        schema = cast("dict[str, Any]", wanted.get("json_schema") or {}).get("schema")
        if not isinstance(schema, dict):
            raise missing("response_format.json_schema.schema")
        return schema
    return None


def _whole(data: dict[str, Any], name: str, low: int, high: int | None = None) -> int | None:
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if value < low:
        raise invalid(
            f"Invalid '{name}': integer below minimum value. Expected a value >= {low}, but got {value} instead.",
            param=name,
            code="integer_below_min_value",
        )
    if high is not None and value > high:
        raise invalid(
            f"Invalid '{name}': integer above maximum value. Expected a value <= {high}, but got {value} instead.",
            param=name,
            code="integer_above_max_value",
        )
    return value


def _check_decimal(data: dict[str, Any], name: str, low: float, high: float) -> None:
    value = data[name]
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong_type(name, "a decimal", value)
    if value < low:
        raise invalid(
            f"Invalid '{name}': decimal below minimum value. Expected a value >= {low}, but got {value} instead.",
            param=name,
            code="decimal_below_min_value",
        )
    if value > high:
        raise invalid(
            f"Invalid '{name}': decimal above maximum value. Expected a value <= {high}, but got {value} instead.",
            param=name,
            code="decimal_above_max_value",
        )
