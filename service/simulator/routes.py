"""Decides what each request is answered: finds its route, checks it as the vendor would, plans the delivery."""

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from http import HTTPStatus
from typing import Final

import orjson

from service.simulator.anthropic_read import read_messages
from service.simulator.asks import Refusal, compose
from service.simulator.control import Control, Reply
from service.simulator.directives import (
    BODY_FAULTS,
    NOTHING,
    STATUS_FAULTS,
    DirectiveError,
    Directives,
    merge,
    parse_headers,
    parse_model,
)
from service.simulator.faults import USUAL_AFTER_CHUNKS, damage_plain, damage_script
from service.simulator.http_protocol import Request
from service.simulator.ledger import Call, ConnectionRecord
from service.simulator.limits import FREE, Verdict
from service.simulator.openai_more import EmbeddingAsk
from service.simulator.plan import Pace, Plan, Trip
from service.simulator.text import digest
from service.simulator.vendors import ANTHROPIC, OPENAI, Vendor

_USUAL_HEADER_GAP_MS: Final = 20.0
_JSON: Final = b"application/json"

_MISSHAPEN: Final = (TypeError, AttributeError, KeyError, RecursionError)
"""What reading a body raises whose depths are of other types than the vendor documents; not every field is checked."""

Answerer = Callable[[Vendor, Request, Call], Plan]


@lru_cache(maxsize=4096)
def hash_key(key: str) -> str:
    """Return what the ledger shows of a key."""
    return sha256(key.encode()).hexdigest()[:12]


def head(status: int, content_type: bytes, more: bytes = b"") -> bytes:
    """Return a status line and headers, without those on length and connection."""
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\n%b" % (status, _phrase(status), content_type, more)


@lru_cache
def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Overloaded"


class Simulator:
    """The whole simulated upstream but its sockets."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._ledger = control.ledger
        # Ids must not repeat between simulators of the same seed; everything else is a function of the seed.
        self._instance = secrets.token_hex(4)
        self._request_prefix = f"req_{self._instance}"
        self._routes: dict[str, tuple[str, Answerer]] = {
            "/v1/chat/completions": ("POST", self._complete),
            "/v1/messages": ("POST", self._complete),
            "/v1/messages/count_tokens": ("POST", self._count_tokens),
            "/v1/embeddings": ("POST", self._embed),
            "/v1/models": ("GET", self._list_models),
        }

    def plan(self, request: Request, connection: ConnectionRecord) -> Plan:
        """Return how a request is to be answered, and open its record in the ledger if it is a vendor's route."""
        path = request.path
        if (reply := self._control.answer(request)) is not None:
            return _plan_reply(reply)
        is_messages = path.startswith("/v1/messages")
        vendor = ANTHROPIC if is_messages or b"anthropic-version" in request.headers else OPENAI
        call = self._ledger.open_call(connection, vendor.name, path, self._request_prefix)
        headers = request.headers
        if (client_id := headers.get(b"x-client-request-id") or headers.get(b"x-request-id")) is not None:
            self._ledger.name_call(call, client_id.decode("latin-1"))
        try:
            method, answer = self._find(path)
            if method is None:
                raise vendor.unknown_url(request.method, path)
            if request.method != method:
                raise vendor.wrong_method(request.method, path, method)
            self._authenticate(vendor, request, call)
            return answer(vendor, request, call)
        except Refusal as refusal:
            return self._refuse(vendor, call, refusal)
        except DirectiveError as exc:
            return self._refuse(vendor, call, vendor.invalid(str(exc)))

    def _find(self, path: str) -> tuple[str | None, Answerer]:
        if (found := self._routes.get(path)) is not None:
            return found
        if path.startswith("/v1/models/"):
            return "GET", self._get_model
        return None, self._get_model

    def _authenticate(self, vendor: Vendor, request: Request, call: Call) -> None:
        key = vendor.key_of(request.headers)
        if key is not None:
            call.key = hash_key(key)
        if (keys := self._control.options.keys) and key not in keys:
            raise vendor.unauthenticated(key)
        if vendor is ANTHROPIC and b"anthropic-version" not in request.headers:
            raise vendor.invalid("anthropic-version: header is required")

    def _directives(self, request: Request, own: Directives = NOTHING) -> Directives:
        """Return what holds for a call: its headers before its model's name before the control route."""
        held = self._control.directives
        if own is not NOTHING:
            held = merge(held, own)
        return merge(held, parse_headers(request.directives)) if request.directives else held

    def _strike(self, vendor: Vendor, directives: Directives, call: Call, model: str) -> Directives:
        """Return the directives without the fault if it passes this call by. Raises Refusal for one of a status."""
        fault = directives.fault
        if fault is None:
            return directives
        if not self._control.counters.befalls(directives, model):
            return replace(directives, fault=None)
        call.fault = fault
        if fault in STATUS_FAULTS:
            raise vendor.fault(fault, directives.retry_after_s)
        return directives

    def _complete(self, vendor: Vendor, request: Request, call: Call) -> Plan:
        options = self._control.options
        try:
            ask = vendor.read(request.body)
            call.model = ask.model
            call.stream = ask.stream
            model, own = parse_model(ask.model)
            directives = self._strike(vendor, self._directives(request, own), call, ask.model)
            answer = compose(ask, model, directives, seed=options.seed, output_tokens=options.output_tokens)
        except _MISSHAPEN as exc:
            raise vendor.invalid(f"The request body is not valid: {exc}") from exc
        verdict = self._admit(vendor, call, model, answer.input_tokens + answer.output_tokens)
        call.input_tokens = answer.input_tokens
        call.output_tokens_total = answer.output_tokens
        number = digest(options.seed, call.id)
        pace = self._pace(directives, answer.input_tokens, number)
        identity = f"{self._instance}{call.id:016x}"
        fault = directives.fault
        with_usage = fault != "no_usage"
        plan = Plan(b"", pace=pace, call=call, early_headers=bool(directives.early_headers))
        if ask.stream:
            script = vendor.write_stream(ask, answer, identity, with_usage=with_usage)
            plan.script = damage_script(script, directives, vendor.wreckage) if fault in BODY_FAULTS else script
        else:
            plan.body = vendor.write_plain(ask, answer, identity, with_usage=with_usage)
            plan.tokens = answer.output_tokens
            # A whole answer is ready when its last token is.
            rounds = max(choice.chunks for choice in answer.choices)
            plan.pace = replace(pace, first_s=pace.first_s + max(0, rounds - 1) * pace.gap_s)
            if fault in BODY_FAULTS:
                self._damage(plan, vendor, fault)
        content_type = vendor.stream_type if ask.stream else _JSON
        more = vendor.headers(call, verdict, plan.pace.first_s * 1000, time.time())
        return self._finish(plan, directives, content_type, more)

    def _damage(self, plan: Plan, vendor: Vendor, fault: str | None) -> None:
        if fault is not None and fault != "no_usage":
            plan.body = damage_plain(plan.body, fault, vendor.wreckage)
            plan.complete = False
            plan.tokens = 0

    def _finish(self, plan: Plan, directives: Directives, content_type: bytes, more: bytes) -> Plan:
        """Write the head, and put the faults of the wire into a plan."""
        call = plan.call
        if call is not None:
            call.status = 200
        plan.chunk_bytes = directives.chunk_bytes or 0
        match directives.fault:
            case "slow_headers":
                gap_ms = directives.header_gap_ms
                plan.header_gap_s = (_USUAL_HEADER_GAP_MS if gap_ms is None else gap_ms) / 1000
            case "reset" | "cut" | "stall" as kind:
                after = directives.after_chunks
                if kind == "cut" and after is None and directives.after_bytes is None:
                    after = USUAL_AFTER_CHUNKS
                stall_s = None if directives.stall_ms is None else directives.stall_ms / 1000
                plan.trip = Trip(kind, directives.after_bytes, after, stall_s)
                if call is not None and plan.trip.before_head and (kind == "reset" or stall_s is None):
                    call.status = None
        plan.head = head(200, content_type, more)
        return plan

    def _pace(self, directives: Directives, input_tokens: int, number: int) -> Pace:
        options = self._control.options
        ttft_ms = options.ttft_ms if directives.ttft_ms is None else directives.ttft_ms
        gap_ms = options.gap_ms if directives.gap_ms is None else directives.gap_ms
        jitter = options.jitter if directives.jitter is None else directives.jitter
        prefill_us = options.prefill_us if directives.prefill_us is None else directives.prefill_us
        return Pace(ttft_ms / 1000 + prefill_us * input_tokens / 1e6, gap_ms / 1000, jitter, number)

    def _admit(self, vendor: Vendor, call: Call, model: str, tokens: int) -> Verdict:
        verdict = self._control.limits.admit(call.key or "", tokens, time.monotonic())
        if verdict.refused is not None:
            refusal = vendor.over_limit(verdict, model, tokens)
            refusal.headers += vendor.headers(call, verdict, 0, time.time()).decode("latin-1")
            raise refusal
        return verdict

    def _embed(self, vendor: Vendor, request: Request, call: Call) -> Plan:
        ask = EmbeddingAsk(request.body)
        call.model = ask.model
        model, own = parse_model(ask.model)
        directives = self._strike(vendor, self._directives(request, own), call, ask.model)
        verdict = self._admit(vendor, call, model, ask.input_tokens)
        call.input_tokens = ask.input_tokens
        body = ask.answer(self._control.options.seed)
        return self._plan_plain(vendor, call, directives, body, verdict)

    def _count_tokens(self, vendor: Vendor, request: Request, call: Call) -> Plan:
        ask = read_messages(request.body, counting=True)
        call.model = ask.model
        directives = self._strike(vendor, self._directives(request, parse_model(ask.model)[1]), call, ask.model)
        return self._plan_plain(vendor, call, directives, orjson.dumps({"input_tokens": ask.input_tokens}))

    def _list_models(self, vendor: Vendor, request: Request, call: Call) -> Plan:
        directives = self._strike(vendor, self._directives(request), call, "")
        return self._plan_plain(vendor, call, directives, vendor.list_models())

    def _get_model(self, vendor: Vendor, request: Request, call: Call) -> Plan:
        directives = self._strike(vendor, self._directives(request), call, "")
        return self._plan_plain(vendor, call, directives, vendor.get_model(request.path.removeprefix("/v1/models/")))

    def _plan_plain(
        self, vendor: Vendor, call: Call, directives: Directives, body: bytes, verdict: Verdict = FREE
    ) -> Plan:
        """Return the plan of an answer without output tokens, which is ready at once unless a call says otherwise."""
        first_s = (directives.ttft_ms or 0) / 1000
        plan = Plan(b"", body, pace=Pace(first_s=first_s), call=call)
        if directives.fault in BODY_FAULTS:
            self._damage(plan, vendor, directives.fault)
        return self._finish(plan, directives, _JSON, vendor.headers(call, verdict, first_s * 1000, time.time()))

    def _refuse(self, vendor: Vendor, call: Call, refusal: Refusal) -> Plan:
        """Return the plan of an error, which is sent at once."""
        call.status = refusal.status
        call.fault = refusal.fault or call.fault
        more = refusal.headers.encode("latin-1")
        if b"request-id: " not in more:
            more = vendor.headers(call, FREE, 0, 0) + more
        body = vendor.error_body(refusal.error, call)
        return Plan(head(refusal.status, _JSON, more), body, complete=False, call=call)


def _plan_reply(reply: Reply) -> Plan:
    return Plan(head(reply.status, reply.content_type), reply.body)
