"""OpenAI's error objects, for mistakes in a request and for the faults that can be asked for.

Texts and codes as documented at platform.openai.com/docs/guides/error-codes and as its API answered in 2026.
"""

import math
from typing import Final

from service.simulator.asks import Refusal
from service.simulator.limits import Verdict


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, object]:
    """Return the object that stands under `error` in a body."""
    return {"message": message, "type": kind, "param": param, "code": code}


def invalid(message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> Refusal:
    """Refuse a request that is wrong in itself."""
    return Refusal(status, error(message, "invalid_request_error", code, param))


def not_json(_: str) -> Refusal:
    """Refuse a body that is not a JSON object."""
    return invalid(
        "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
        "library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)"
    )


def wrong_type(param: str, expected: str, value: object) -> Refusal:
    """Refuse a field of the wrong type."""
    names = {
        str: "a string",
        int: "an integer",
        float: "a decimal",
        bool: "a boolean",
        list: "an array",
        dict: "an object",
    }
    got = names.get(type(value), "null")
    return invalid(
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.", param=param, code="invalid_type"
    )


def missing(param: str) -> Refusal:
    """Refuse a request without a field that it needs."""
    return invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def unauthenticated(key: str | None) -> Refusal:
    """Refuse a caller without a key, or with one that is not known."""
    if key is None:
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY)."
        )
        return Refusal(401, error(message, "invalid_request_error"))
    shown = f"{key[:4]}{'*' * max(4, len(key) - 8)}{key[-4:]}" if len(key) > 8 else "*" * len(key)  # noqa: PLR2004
    message = (
        f"Incorrect API key provided: {shown}. You can find your API key at "
        "https://platform.openai.com/account/api-keys."
    )
    return Refusal(401, error(message, "invalid_request_error", "invalid_api_key"))


def unknown_url(method: str, path: str) -> Refusal:
    """Refuse a route that does not exist."""
    return invalid(f"Invalid URL ({method} {path})", status=404)


def wrong_method(method: str, path: str, allowed: str) -> Refusal:
    """Refuse a method that the route does not take."""
    return Refusal(
        405,
        error(
            f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to make a {allowed} request?)",
            "invalid_request_error",
            "method_not_supported",
        ),
        headers=f"allow: {allowed}\r\n",
    )


def model_not_found(model: str) -> Refusal:
    """Refuse a model that does not exist."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return invalid(message, code="model_not_found", status=404)


def _retry_after(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 0:
        return ""
    return f"retry-after: {math.ceil(seconds)}\r\nretry-after-ms: {math.ceil(seconds * 1000)}\r\n"


def over_limit(verdict: Verdict, model: str, tokens: int) -> Refusal:
    """Refuse a call that its key's limits do not admit."""
    standing = next(s for s in verdict.standings if s.dimension == verdict.refused)
    short, requested = ("RPM", 1) if standing.dimension == "requests" else ("TPM", tokens)
    head = f"{model} in organization org-sim on {standing.dimension} per min ({short}): Limit {standing.limit}"
    if math.isinf(verdict.wait_s):
        message = f"Request too large for {head}, Requested {requested}. The input or output tokens must be reduced."
    else:
        message = (
            f"Rate limit reached for {head}, Used {standing.limit - standing.remaining}, Requested {requested}. "
            f"Please try again in {math.ceil(verdict.wait_s * 1000) / 1000:g}s. Visit "
            "https://platform.openai.com/account/rate-limits to learn more."
        )
    return Refusal(
        429,
        error(message, standing.dimension, "rate_limit_exceeded"),
        headers=_retry_after(verdict.wait_s),
        fault=f"limit_{standing.dimension}",
    )


_FAULTS: Final[dict[str, tuple[int, dict[str, object], float]]] = {
    "400": (
        400,
        error(
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 130001 tokens. "
            "Please reduce the length of the messages.",
            "invalid_request_error",
            "context_length_exceeded",
            "messages",
        ),
        -1,
    ),
    "401": (401, unauthenticated("sk-simulated-key-0000").error, -1),
    "403": (
        403,
        error(
            "Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"
        ),
        -1,
    ),
    "404": (404, model_not_found("sim-404").error, -1),
    "429": (
        429,
        error(
            "Rate limit reached for sim in organization org-sim on requests per min (RPM): Limit 3, Used 3, Requested "
            "1. Please try again in 1s. Visit https://platform.openai.com/account/rate-limits to learn more.",
            "requests",
            "rate_limit_exceeded",
        ),
        1,
    ),
    "quota": (
        429,
        error(
            "You exceeded your current quota, please check your plan and billing details. For more information on "
            "this error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
            "insufficient_quota",
            "insufficient_quota",
        ),
        -1,
    ),
    "500": (
        500,
        error("The server had an error while processing your request. Sorry about that!", "server_error"),
        -1,
    ),
    "503": (503, error("The engine is currently overloaded, please try again later", "server_error"), -1),
    "529": (
        503,
        error(
            "The engine is currently overloaded, please try again later. Reduce the rate of your requests.",
            "service_unavailable_error",
            "slow_down",
        ),
        1,
    ),
}


def fault(name: str, retry_after_s: float | None) -> Refusal:
    """Return the error that a fault of a status asks for."""
    status, body, usual_s = _FAULTS[name]
    wait_s = usual_s if retry_after_s is None else retry_after_s
    return Refusal(status, body, headers=_retry_after(wait_s), fault=name)


SERVER_ERROR: Final = _FAULTS["500"][1]
