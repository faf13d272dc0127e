"""Anthropic's error objects, for mistakes in a request and for the faults that can be asked for.

Types and statuses as documented at docs.anthropic.com/en/api/errors and typed by its SDK in 2026.
"""

import math
from typing import Final

from service.simulator.asks import Refusal
from service.simulator.limits import Verdict


def error(message: str, kind: str, **more: object) -> dict[str, object]:
    """Return the object that stands under `error` in a body."""
    return {"type": kind, "message": message, **more}


def invalid(message: str, *, status: int = 400) -> Refusal:
    """Refuse a request that is wrong in itself."""
    return Refusal(status, error(message, "invalid_request_error"))


def not_json(reason: str) -> Refusal:
    """Refuse a body that is not a JSON object."""
    return invalid(f"The request body is not valid JSON: {reason}")


def missing(field: str) -> Refusal:
    """Refuse a request without a field that it needs."""
    return invalid(f"{field}: Field required")


def unauthenticated(key: str | None) -> Refusal:
    """Refuse a caller without a key, or with one that is not known."""
    message = "x-api-key header is required" if key is None else "invalid x-api-key"
    return Refusal(401, error(message, "authentication_error"))


def unknown_url(_method: str, _path: str) -> Refusal:
    """Refuse a route that does not exist."""
    return Refusal(404, error("Not Found", "not_found_error"))


def wrong_method(_method: str, _path: str, allowed: str) -> Refusal:
    """Refuse a method that the route does not take."""
    return Refusal(405, error("Method Not Allowed", "invalid_request_error"), headers=f"allow: {allowed}\r\n")


def model_not_found(model: str) -> Refusal:
    """Refuse a model that does not exist."""
    return Refusal(404, error(f"model: {model}", "not_found_error"))


def _retry_after(seconds: float) -> str:
    return f"retry-after: {math.ceil(seconds)}\r\n" if math.isfinite(seconds) and seconds >= 0 else ""


def over_limit(verdict: Verdict, model: str, _tokens: int) -> Refusal:
    """Refuse a call that its key's limits do not admit."""
    standing = next(s for s in verdict.standings if s.dimension == verdict.refused)
    message = (
        f"This request would exceed your organization's rate limit of {standing.limit:,} {standing.dimension} per "
        f"minute (model: {model}). Please reduce the prompt length or the maximum tokens requested, or try again later."
    )
    return Refusal(
        429,
        error(message, "rate_limit_error"),
        headers=_retry_after(verdict.wait_s),
        fault=f"limit_{standing.dimension}",
    )


_FAULTS: Final[dict[str, tuple[int, dict[str, object], float]]] = {
    "400": (400, error("prompt is too long: 200001 tokens > 200000 maximum", "invalid_request_error"), -1),
    "401": (401, unauthenticated("wrong").error, -1),
    "403": (403, error("Request not allowed", "permission_error"), -1),
    "404": (404, model_not_found("sim-404").error, -1),
    "429": (
        429,
        error("This request would exceed your account's rate limit. Please try again later.", "rate_limit_error"),
        1,
    ),
    "quota": (
        429,
        error(
            "You have reached your specified API usage limits. You will regain access on the first of next month.",
            "rate_limit_error",
            details={"error_code": "enforced_spend_limit_reached"},
        ),
        -1,
    ),
    "500": (500, error("Internal server error", "api_error"), -1),
    "503": (503, error("Service temporarily unavailable", "api_error"), -1),
    "529": (529, error("Overloaded", "overloaded_error"), -1),
}


def fault(name: str, retry_after_s: float | None) -> Refusal:
    """Return the error that a fault of a status asks for."""
    status, body, usual_s = _FAULTS[name]
    wait_s = usual_s if retry_after_s is None else retry_after_s
    return Refusal(status, body, headers=_retry_after(wait_s), fault=name)


OVERLOADED: Final = _FAULTS["529"][1]
