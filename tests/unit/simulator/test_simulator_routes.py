"""What is planned for requests of any shape: an answer or the vendor's refusal, never an exception."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.simulator.control import Control, ControlError
from service.simulator.http_protocol import Request
from service.simulator.ledger import ConnectionRecord
from service.simulator.options import SimulatorOptions
from service.simulator.plan import Plan
from service.simulator.routes import Simulator

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 300), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": JSON}),
    max_size=3,
)
FIELDS = (
    "max_tokens stop stop_sequences stream stream_options n tools tool_choice response_format logprobs top_logprobs "
    "temperature system output_config output_format"
)
BODIES = st.fixed_dictionaries(
    {},
    optional={"model": st.one_of(JSON, st.just("sim")), "messages": st.one_of(JSON, MESSAGES)}
    | dict.fromkeys(FIELDS.split(), JSON),
)


def plan(path: str, body: Any, *, options: SimulatorOptions | None = None, **headers: str) -> Plan:
    simulator = Simulator(Control(options or SimulatorOptions()))
    sent = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return simulator.plan(Request("POST", path, headers=sent, body=orjson.dumps(body)), ConnectionRecord(1, 0.0))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"])
@given(body=BODIES)
def test_a_body_of_any_shape_is_answered_or_refused(path: str, body: dict[str, Any]) -> None:
    made = plan(path, body, anthropic_version="2023-06-01") if "messages" in path else plan(path, body)
    assert made.call is not None
    assert made.call.status in (200, 400)
    if made.script is not None:
        frames = list(made.script.frames)
        assert sum(tokens > 0 for _, tokens in frames) == made.script.chunks
        assert sum(tokens for _, tokens in frames) == made.call.output_tokens_total
    else:
        answer = orjson.loads(made.body)
        assert ("error" in answer) == (made.call.status == 400)


@given(body=st.fixed_dictionaries({}, optional={"model": st.just("m"), "input": JSON, "dimensions": JSON}))
def test_an_embedding_request_of_any_shape_is_answered_or_refused(body: dict[str, Any]) -> None:
    made = plan("/v1/embeddings", body)
    assert made.call is not None
    assert made.call.status in (200, 400)


def test_prefill_adds_to_the_time_to_first_token_by_input_token() -> None:
    body = {"model": "sim;prefill_us=1000;ttft_ms=5", "stream": True}
    made = plan("/v1/chat/completions", {**body, "messages": [{"role": "user", "content": "a b c d"}]})
    assert made.pace.first_s == pytest.approx(0.009)


def test_a_whole_answer_takes_as_long_as_its_tokens() -> None:
    body = {"model": "sim;ttft_ms=50;gap_ms=10;tokens=11", "messages": [{"role": "user", "content": "a"}]}
    assert plan("/v1/chat/completions", body).pace.first_s == pytest.approx(0.150)


@pytest.mark.parametrize("wrong", [{"jitter": 2}, {"ttft_ms": -1}, {"output_tokens": -1}, {"requests_per_minute": -1}])
def test_options_out_of_range_are_refused_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ControlError, match=next(iter(wrong))):
        Control(SimulatorOptions(**wrong))
