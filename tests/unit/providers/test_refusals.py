"""What each vendor's refusals mean to us: by status and code, and by one text."""

import urllib.request
from datetime import UTC, datetime

import orjson
import pytest
from yarl import URL

from service.errors import (
    UpstreamError,
    UpstreamInvalid,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRejected,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from service.providers import anthropic, openai
from service.providers.http import proxy_for, retry_after_s


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"code": "context_length_exceeded", "message": "too long"}, UpstreamRejected),
        (400, {"code": "model_not_found"}, UpstreamMisconfigured),
        (401, {"code": "invalid_api_key"}, UpstreamMisconfigured),
        (402, {}, UpstreamMisconfigured),
        (403, {}, UpstreamMisconfigured),
        (404, {"code": "model_not_found"}, UpstreamMisconfigured),
        (301, {}, UpstreamMisconfigured),
        (408, {}, UpstreamUnavailable),
        (409, {}, UpstreamUnavailable),
        (413, {}, UpstreamRejected),
        (422, {"message": "no"}, UpstreamRejected),
        (429, {"code": "rate_limit_exceeded"}, UpstreamThrottled),
        (429, {"type": "insufficient_quota"}, UpstreamMisconfigured),
        (429, {"code": "project_spend_limit_exceeded"}, UpstreamMisconfigured),
        (500, {}, UpstreamUnavailable),
        (503, {}, UpstreamUnavailable),
        (503, {"code": "slow_down"}, UpstreamThrottled),
        (529, {}, UpstreamOverloaded),
        (200, {"code": 429}, UpstreamThrottled),
        (200, {"code": "insufficient_quota"}, UpstreamMisconfigured),
        (200, {"type": "invalid_request_error", "message": "no"}, UpstreamRejected),
        (200, {"type": "server_error"}, UpstreamUnavailable),
        (200, {"code": True, "message": ["x"]}, UpstreamUnavailable),
    ],
)
def test_openai_refusals(status: int, error: object, expected: type[UpstreamError]) -> None:
    body = orjson.dumps({"error": error})
    found = openai.refusal_error(status, {"retry-after": "3"}, body, provider="up")
    assert type(found) is expected
    assert found.provider == "up"
    assert (found.retry_after_s == 3) == (expected in {UpstreamThrottled, UpstreamOverloaded, UpstreamUnavailable})


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"type": "invalid_request_error", "message": "no"}, UpstreamRejected),
        (401, {"type": "authentication_error"}, UpstreamMisconfigured),
        (402, {"type": "billing_error"}, UpstreamMisconfigured),
        (404, {"type": "not_found_error"}, UpstreamMisconfigured),
        (413, {"type": "request_too_large"}, UpstreamRejected),
        (429, {"type": "rate_limit_error"}, UpstreamThrottled),
        (429, {"details": {"error_code": "ramp_limit_exceeded"}}, UpstreamThrottled),
        (429, {"details": {"error_code": "enforced_spend_limit_reached"}}, UpstreamMisconfigured),
        (500, {"type": "api_error"}, UpstreamUnavailable),
        (529, {"type": "overloaded_error"}, UpstreamOverloaded),
        (200, {"type": "overloaded_error"}, UpstreamOverloaded),
        (200, {"type": "something_new"}, UpstreamUnavailable),
    ],
)
def test_anthropic_refusals(status: int, error: object, expected: type[UpstreamError]) -> None:
    body = orjson.dumps({"type": "error", "error": error})
    assert type(anthropic.refusal_error(status, {}, body, provider="up")) is expected


@pytest.mark.parametrize("module", [openai, anthropic])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"error": null}', b"\xff", b"1"])
def test_bodies_that_say_nothing_leave_the_status_to_decide(module: object, body: bytes) -> None:
    refusal_error = {openai: openai.refusal_error, anthropic: anthropic.refusal_error}[module]  # type: ignore[index]  # modules are hashable
    assert type(refusal_error(500, {}, body, provider="up")) is UpstreamUnavailable
    assert type(refusal_error(200, {}, body, provider="up")) is UpstreamInvalid


CREDIT = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."


@pytest.mark.parametrize(
    ("status", "kind", "message", "refused"),
    [
        (400, "invalid_request_error", CREDIT, "funds"),
        (200, "invalid_request_error", CREDIT, "funds"),
        (400, "invalid_request_error", f"messages.0: {CREDIT}", None),
        (413, "request_too_large", CREDIT, None),
        (400, "another_error", CREDIT, None),
    ],
)
def test_an_empty_account_at_anthropic_is_known_by_its_text_in_that_one_place(
    status: int, kind: str, message: str, refused: str | None
) -> None:
    body = orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
    found = anthropic.refusal_error(status, {}, body, provider="up")
    assert getattr(found, "refused", None) == refused
    if refused:
        assert (found.upstream_code, found.status) == ("credit_balance_too_low", 502)


def gemini_error(reason: object, code: int = 400) -> dict[str, object]:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}
    return {
        "error": {"code": code, "message": "API key not valid.", "status": "INVALID_ARGUMENT", "details": [1, info]}
    }


@pytest.mark.parametrize(
    "body",
    [gemini_error("API_KEY_INVALID"), [gemini_error("API_KEY_INVALID")], [gemini_error("API_KEY_SERVICE_BLOCKED")]],
    ids=["object", "list", "another reason"],
)
def test_a_key_that_google_refuses_is_known_by_the_reason_in_the_details(body: object) -> None:
    found = openai.refusal_error(400, {}, orjson.dumps(body), provider="up")
    assert isinstance(found, UpstreamMisconfigured)
    assert (found.refused, found.upstream_status) == ("key", 400)
    assert str(found.upstream_code).startswith("API_KEY_")


@pytest.mark.parametrize("reason", ["FIELD_INVALID", None, 7])
def test_other_reasons_of_google_are_about_the_request(reason: object) -> None:
    found = openai.refusal_error(400, {}, orjson.dumps([gemini_error(reason)]), provider="up")
    assert (type(found), str(found)) == (UpstreamRejected, "API key not valid.")


def test_rejection_keeps_the_providers_reason_and_a_misconfiguration_does_not() -> None:
    body = orjson.dumps({"error": {"message": "see sk-abc", "code": "x"}})
    rejected = openai.refusal_error(400, {}, body, provider="up")
    assert (str(rejected), rejected.upstream_code, rejected.upstream_status) == ("see sk-abc", "x", 400)
    assert "sk-abc" not in str(openai.refusal_error(401, {}, body, provider="up"))


def test_reason_in_fastapis_form_is_read_too() -> None:
    assert str(openai.refusal_error(422, {}, b'{"detail": "no such field"}', provider="up")) == "no such field"


NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Sun, 01 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 01 Nov 2026 11:59:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "nan", "retry-after": "1"}, 1.0),
    ],
)
def test_when_to_come_back_is_read_in_every_form(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, now=NOW) == expected


def test_proxy_of_the_environment_is_taken_but_never_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy:3128", "http": "http://p:1"})
    monkeypatch.setattr(urllib.request, "proxy_bypass", lambda host: host == "inside.example")
    assert proxy_for(URL("https://api.example/v1")) == "http://proxy:3128"
    assert proxy_for(URL("https://inside.example/v1")) is None
    assert proxy_for(URL("http://127.0.0.1:9000/v1")) is None
    assert proxy_for(URL("http://[::1]:9000/v1")) is None
    assert proxy_for(URL("http://localhost/v1")) is None
