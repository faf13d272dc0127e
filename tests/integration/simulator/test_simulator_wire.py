"""The simulator on the wire: faults, framing, and clients that leave, seen through plain sockets."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from service.simulator.options import SimulatorOptions
from service.simulator.server import SimulatorHandle, running
from tests.integration.simulator_client import Client, chat, eventually, message, request

FAST = SimulatorOptions(port=0, ttft_ms=0, gap_ms=0, output_tokens=8)
FOREVER_MS = 3_600_000


@pytest.fixture
async def simulator() -> AsyncIterator[SimulatorHandle]:
    async with running(FAST) as handle:
        yield handle


@pytest.fixture
async def client(simulator: SimulatorHandle) -> AsyncIterator[Client]:
    client = await Client.connect(simulator.base_url)
    yield client
    await client.close()


class TestFaults:
    @pytest.mark.parametrize("make", [chat, message])
    @pytest.mark.parametrize("place", [0, 1, 333, 700])
    async def test_cut_ends_the_body_after_exactly_k_bytes(
        self, client: Client, simulator: SimulatorHandle, make: Any, place: int
    ) -> None:
        reply = await client.call(make(f"sim;fault=cut;after_bytes={place}", stream=True))
        assert (reply.status, len(reply.body), reply.whole) == (200, place, False)
        (call,) = simulator.calls()
        await eventually(lambda: call.connection.closed_at)
        assert (call.fault, call.finished, call.client_left) == ("cut", False, False)

    async def test_cut_without_a_place_lets_three_tokens_pass(self, client: Client, simulator: SimulatorHandle) -> None:
        reply = await client.call(chat("sim-cut", stream=True))
        assert len(reply.events) == 4
        assert simulator.calls()[0].output_tokens_delivered == 3

    async def test_a_whole_body_can_be_cut_too(self, client: Client) -> None:
        reply = await client.call(chat("sim;fault=cut;after_bytes=10"))
        assert (len(reply.body), reply.whole) == (10, False)
        assert int(reply.headers["content-length"]) > 10

    @pytest.mark.parametrize("fault", ["cut", "reset", "stall"])
    async def test_a_place_past_the_last_byte_of_a_whole_body_lets_it_pass_and_leaves_the_connection_alone(
        self, client: Client, simulator: SimulatorHandle, fault: str
    ) -> None:
        for _ in range(2):
            assert (await client.call(chat(f"sim;fault={fault};after_bytes=100000"))).whole
        assert [(call.finished, call.connection.id) for call in simulator.calls()] == [(True, 1)] * 2

    async def test_reset_before_the_headers(self, client: Client, simulator: SimulatorHandle) -> None:
        with pytest.raises(ConnectionResetError):
            await client.call(chat("sim-reset", stream=True))
        (call,) = simulator.calls()
        assert (call.status, call.output_tokens_delivered, call.client_left) == (None, 0, False)

    async def test_reset_in_mid_stream_after_exactly_k_bytes(self, client: Client) -> None:
        reply = await client.call(chat("sim;fault=reset;after_bytes=400", stream=True))
        assert (len(reply.body), reply.whole) == (400, False)
        with pytest.raises(ConnectionResetError):
            await client.reader.read()

    @pytest.mark.parametrize("make", [chat, message])
    async def test_eof_is_a_sound_body_without_an_end(
        self, client: Client, simulator: SimulatorHandle, make: Any
    ) -> None:
        reply = await client.call(make("sim;fault=eof;after_chunks=2", stream=True))
        assert reply.whole
        assert b"[DONE]" not in reply.body
        assert b"message_stop" not in reply.body
        assert b'finish_reason":"stop' not in reply.body
        (call,) = simulator.calls()
        assert (call.finished, call.output_tokens_delivered) == (False, 2)

    async def test_malformed_json_stands_in_one_event(self, client: Client) -> None:
        reply = await client.call(chat("sim;fault=malformed;after_chunks=1", stream=True))
        sound = []
        for event in reply.events[:-1]:
            try:
                orjson.loads(event)
                sound.append(True)
            except orjson.JSONDecodeError:
                sound.append(False)
        assert sound.count(False) == 1
        assert sound[2] is False
        assert reply.events[-1] == "[DONE]"
        whole = await client.call(chat("sim-malformed"))
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(whole.body)
        assert whole.whole

    async def test_an_error_stands_inside_a_200(self, client: Client) -> None:
        reply = await client.call(chat("sim-error_in_200"))
        assert (reply.status, reply.json["error"]["type"]) == (200, "server_error")
        reply = await client.call(message("sim-error-in-200"))
        assert (reply.status, reply.json["error"]["type"]) == (200, "overloaded_error")

    @pytest.mark.parametrize("stream", [False, True])
    async def test_an_empty_answer_is_a_200_without_a_byte(self, client: Client, stream: bool) -> None:  # noqa: FBT001
        reply = await client.call(chat("sim-empty", stream=stream))
        assert (reply.status, reply.body, reply.whole) == (200, b"", True)

    async def test_an_answer_breaks_its_schema(self, client: Client) -> None:
        reply = await client.call(chat("sim-wrong_schema"))
        assert "choices" not in reply.json
        assert isinstance(reply.json["usage"]["prompt_tokens"], str)
        reply = await client.call(message("sim-wrong_schema"))
        assert "content" not in reply.json

    async def test_usage_can_be_missing(self, client: Client) -> None:
        assert "usage" not in (await client.call(chat("sim-no_usage"))).json
        reply = await client.call(chat("sim-no_usage", stream=True, stream_options={"include_usage": True}))
        assert b'"usage"' not in reply.body
        assert reply.events[-1] == "[DONE]"
        assert b'"usage"' not in (await client.call(message("sim-no_usage", stream=True))).body

    async def test_slow_headers_come_in_single_bytes(self, client: Client) -> None:
        client.send(chat("sim;fault=slow_headers;header_gap_ms=1"))
        first = await client.reader.read(1 << 16)
        assert first == b"H"
        rest = await client.reader.readuntil(b"\r\n\r\n")
        assert rest.startswith(b"TTP/1.1 200 OK\r\n")

    @pytest.mark.parametrize(
        ("place", "seen"),
        [("", b""), (";after_bytes=0", b"HTTP/1.1 200 OK"), (";after_chunks=2", b"HTTP/1.1 200 OK")],
    )
    async def test_a_stall_holds_until_the_client_leaves(
        self, client: Client, simulator: SimulatorHandle, place: str, seen: bytes
    ) -> None:
        client.send(chat(f"sim;fault=stall{place}", stream=True))
        await eventually(lambda: simulator.calls() and (not seen or simulator.calls()[0].first_byte_at))
        (call,) = simulator.calls()
        assert call.closed_at is None
        await client.close()
        await eventually(lambda: call.connection.closed_at)
        assert call.client_left
        assert call.output_tokens_delivered == (2 if "chunks" in place else 0)
        assert (await client.reader.read()).startswith(seen)

    async def test_a_stall_can_end(self, client: Client) -> None:
        reply = await client.call(chat("sim;fault=stall;after_chunks=2;stall_ms=5", stream=True))
        assert reply.whole
        assert reply.events[-1] == "[DONE]"

    async def test_an_outage_befalls_every_call_until_it_is_lifted(self, client: Client) -> None:
        assert (await client.call(request("/control", {"directives": "fault=529"}))).status == 200
        assert [(await client.call(make())).status for make in (chat, message)] == [503, 529]
        assert (await client.call(request("/v1/models", method="GET"))).status == 503
        assert (await client.call(request("/control", {"directives": None}))).status == 200
        assert (await client.call(chat())).status == 200

    async def test_a_misspelt_directive_is_an_error_and_not_a_healthy_answer(self, client: Client) -> None:
        reply = await client.call(chat("sim;fualt=500"))
        assert reply.status == 400
        assert "fualt" in reply.json["error"]["message"]


class TestLeaving:
    @pytest.mark.parametrize("how", ["close", "break_off"])
    @pytest.mark.parametrize(
        ("model", "delivered"),
        [
            (f"sim;ttft_ms={FOREVER_MS}", 0),
            (f"sim;ttft_ms={FOREVER_MS};early_headers=1", 0),
            (f"sim;gap_ms={FOREVER_MS}", 1),
        ],
    )
    async def test_a_client_that_leaves_is_noticed_while_nothing_is_sent(
        self, client: Client, simulator: SimulatorHandle, how: str, model: str, delivered: int
    ) -> None:
        client.send(chat(model, stream=True))
        await eventually(lambda: simulator.calls() and simulator.calls()[0].output_tokens_delivered == delivered)
        await getattr(client, how)()
        (call,) = simulator.calls()
        await eventually(lambda: call.client_left)
        assert (call.output_tokens_total, call.output_tokens_delivered, call.finished) == (8, delivered, False)
        assert call.connection.closed_at is not None
        assert simulator.ledger.summary()["open_calls"] == 0
        assert simulator.ledger.open_connections == 0

    async def test_a_slow_reader_is_charged_for_what_it_took(self, simulator: SimulatorHandle) -> None:
        slow = await Client.connect(simulator.base_url, receive_bytes=4096)
        slow.send(chat("sim;tokens=200000", stream=True))
        await eventually(lambda: simulator.calls() and simulator.calls()[0].output_tokens_delivered)
        (call,) = simulator.calls()
        # It stands still when the buffers of both sides are full: the same count in many turns of the loop.
        counts: list[int] = []

        def still() -> bool:
            counts.append(call.output_tokens_delivered)
            return len(counts) > 30 and len(set(counts[-30:])) == 1

        await eventually(still)
        assert 0 < call.output_tokens_delivered < 100_000
        before = call.output_tokens_delivered
        await slow.break_off()
        await eventually(lambda: call.client_left)
        assert call.output_tokens_delivered == before

    async def test_a_slow_reader_that_goes_on_gets_everything(self, simulator: SimulatorHandle) -> None:
        slow = await Client.connect(simulator.base_url, receive_bytes=4096)
        reply = await slow.call(chat("sim;tokens=20000", stream=True))
        assert reply.whole
        assert len(reply.events) == 20000 + 3
        assert simulator.calls()[0].output_tokens_delivered == 20000
        await slow.close()

    async def test_many_who_leave_at_once_are_all_noticed(self, simulator: SimulatorHandle) -> None:
        clients = [await Client.connect(simulator.base_url) for _ in range(200)]
        for client in clients:
            client.send(chat(f"sim;gap_ms={FOREVER_MS}", stream=True))
        await eventually(lambda: simulator.ledger.summary()["output_tokens_delivered"] == 200)
        await asyncio.gather(*(client.close() for client in clients))
        await eventually(lambda: simulator.ledger.open_connections == 0)
        assert simulator.ledger.summary()["client_left"] == 200


class TestText:
    @pytest.mark.parametrize("make", [chat, message])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_an_echo_is_exact_at_every_cut_of_the_bytes(
        self,
        client: Client,
        make: Any,
        stream: bool,  # noqa: FBT001 - a parameter of the test
    ) -> None:
        text = " two  spaces\r\n\u2028 [DONE] \r 👩\u200d🚀 naïve\n\ndata: x\n\n"
        for size in (1, 2, 3, 7, 64, 10_000):
            reply = await client.call(make(f"sim;chunk_bytes={size}", f"echo:{text}", stream=stream))
            assert reply.text == text
            if stream:
                assert max(map(len, reply.pieces)) <= size
        for size in (1, 2, 5):
            reply = await client.call(make(f"sim;piece_chars={size}", f"echo:{text}", stream=stream))
            assert reply.text == text

    async def test_the_same_question_gets_the_same_answer_from_another_simulator(self, client: Client) -> None:
        first = await client.call(chat("gpt-4o"))
        async with running(FAST) as other:
            again = await Client.connect(other.base_url)
            assert (await again.call(chat("gpt-4o", stream=True))).text == first.text
            other.change(seed=1)
            assert (await again.call(chat("gpt-4o"))).text != first.text
            await again.close()


class TestHttp:
    async def test_pipelined_requests_are_answered_in_order(self, client: Client) -> None:
        client.send(b"".join(chat("sim;ttft_ms=2", f"echo:{n}", stream=n % 2 == 0) for n in range(20)))
        assert [(await client.read()).text for _ in range(20)] == [str(n) for n in range(20)]

    async def test_pipelined_requests_that_need_no_wait_do_not_pile_up_on_the_stack(self, client: Client) -> None:
        client.send(request("/health", method="GET") * 900)
        assert [(await client.read()).status for _ in range(900)] == [200] * 900

    async def test_a_request_may_come_in_any_pieces(self, client: Client) -> None:
        for byte in chat(text="echo:bit by bit"):
            client.send(bytes([byte]))
            await client.writer.drain()
        assert (await client.read()).text == "bit by bit"

    async def test_a_chunked_request_is_read(self, client: Client) -> None:
        body = chat(text="echo:chunks").partition(b"\r\n\r\n")[2]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:]))
        reply = await client.call(
            b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        )
        assert reply.text == "chunks"

    async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(self, client: Client) -> None:
        head, _, body = chat(text="echo:asked", headers={"expect": "100-continue"}).partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert (await client.read_head())[0] == 100
        assert (await client.call(body)).text == "asked"

    async def test_a_body_of_two_mebibytes_is_taken(self, client: Client, simulator: SimulatorHandle) -> None:
        reply = await client.call(chat(text="word " * (2 * 1024 * 1024 // 5)))
        assert reply.status == 200
        assert simulator.calls()[0].input_tokens == reply.json["usage"]["prompt_tokens"] > 400_000

    async def test_http_1_0_gets_a_stream_that_ends_with_the_connection(self, client: Client) -> None:
        reply = await client.call(chat(text="echo:old", stream=True).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert reply.headers["connection"] == "close"
        assert reply.text == "old"

    async def test_connection_close_is_obeyed(self, client: Client) -> None:
        reply = await client.call(chat(headers={"connection": "close"}))
        assert reply.whole
        assert await client.reader.read() == b""

    async def test_what_is_not_http_is_refused(self, client: Client) -> None:
        assert (await client.call(b"this is not http\r\n\r\n")).status == 400

    async def test_a_kept_connection_serves_many_calls(self, client: Client, simulator: SimulatorHandle) -> None:
        for _ in range(20):
            assert (await client.call(chat(stream=True))).whole
        assert len({call.connection.id for call in simulator.calls()}) == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "status", "words"),
        [
            (request("/v1/chat/completions", {"messages": []}), 400, "you must provide a model parameter"),
            (request("/v1/chat/completions", {"model": "m"}), 400, "Missing required parameter: 'messages'."),
            (request("/v1/chat/completions", {"model": "m", "messages": []}), 400, "empty array"),
            (request("/v1/chat/completions", {"model": 5, "messages": []}), 400, "expected a string, but got an int"),
            (chat(max_tokens="5"), 400, "Invalid type for 'max_tokens': expected an integer, but got a string"),
            (chat(temperature=3), 400, "decimal above maximum value. Expected a value <= 2"),
            (request("/v1/chat/completions", b"{"), 400, "could not parse the JSON body"),
            (request("/v1/chat/completions", b"[]"), 400, "could not parse the JSON body"),
            (request("/v1/nothing", {}), 404, "Invalid URL (POST /v1/nothing)"),
            (request("/v1/chat/completions", method="GET"), 405, "Not allowed to GET on /v1/chat/completions"),
            (request("/v1/embeddings", {"model": "m"}), 400, "Missing required parameter: 'input'."),
        ],
    )
    async def test_openai_refuses_in_its_own_words(self, client: Client, data: bytes, status: int, words: str) -> None:
        reply = await client.call(data)
        assert reply.status == status
        assert set(reply.json["error"]) == {"message", "type", "param", "code"}
        assert words in reply.json["error"]["message"]
        assert re.fullmatch(r"req_[0-9a-f]+", reply.headers["x-request-id"])

    @pytest.mark.parametrize(
        ("body", "status", "words"),
        [
            ({"messages": [], "max_tokens": 5}, 400, "model: Field required"),
            ({"model": "m", "max_tokens": 5}, 400, "messages: Field required"),
            ({"model": "m", "messages": [], "max_tokens": 5}, 400, "messages: at least one message is required"),
            ({"model": "m", "messages": [{"role": "user", "content": "x"}]}, 400, "max_tokens: Field required"),
            (b"{", 400, "The request body is not valid JSON"),
        ],
    )
    async def test_anthropic_refuses_in_its_own_words(
        self, client: Client, body: dict[str, Any] | bytes, status: int, words: str
    ) -> None:
        reply = await client.call(request("/v1/messages", body, headers={"anthropic-version": "2023-06-01"}))
        assert reply.status == status
        assert (reply.json["type"], reply.json["error"]["type"]) == ("error", "invalid_request_error")
        assert reply.json["error"]["message"].startswith(words)
        assert reply.json["request_id"] == reply.headers["request-id"]

    async def test_anthropic_needs_its_version_header(self, client: Client) -> None:
        reply = await client.call(message().replace(b"anthropic-version", b"x-other"))
        assert reply.json["error"]["message"] == "anthropic-version: header is required"

    async def test_anthropics_routes_and_methods_are_its_own(self, client: Client) -> None:
        headers = {"anthropic-version": "2023-06-01"}
        missing = await client.call(request("/v1/nothing", {}, headers=headers))
        assert (missing.status, missing.json["error"]["type"]) == (404, "not_found_error")
        wrong = await client.call(request("/v1/messages", method="GET", headers=headers))
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")


class TestControl:
    async def test_the_ledger_is_served_as_an_array_and_as_lines(self, client: Client) -> None:
        for _ in range(3):
            await client.call(chat(headers={"authorization": "Bearer sk-secret", "x-request-id": "mine"}))
        records = (await client.call(request("/ledger", method="GET"))).json
        assert [record["id"] for record in records] == [1, 2, 3]
        assert {record["client_request_id"] for record in records} == {"mine"}
        assert "sk-secret" not in str(records)
        assert len({record["key"] for record in records}) == 1
        lines = await client.call(request("/ledger?since_id=1&format=jsonl&limit=1", method="GET"))
        assert [orjson.loads(line)["id"] for line in lines.body.splitlines()] == [2]
        assert (await client.call(request("/ledger?since_id=x", method="GET"))).status == 400

    async def test_the_summary_counts_open_calls_and_connections(
        self, client: Client, simulator: SimulatorHandle
    ) -> None:
        other = await Client.connect(simulator.base_url)
        other.send(chat("sim-stall", stream=True))
        await eventually(simulator.calls)
        await client.call(chat("sim-500"))
        summary = (await client.call(request("/ledger/summary", method="GET"))).json
        assert (summary["calls"], summary["open_calls"], summary["open_connections"]) == (2, 1, 2)
        assert summary["by_status"] == {"500": 1}
        assert summary["by_fault"] == {"500": 1}
        await other.close()

    async def test_deleting_the_ledger_begins_a_new_one(self, client: Client) -> None:
        await client.call(chat())
        await client.call(request("/ledger", method="DELETE"))
        assert (await client.call(request("/ledger", method="GET"))).json == []

    async def test_options_change_while_it_runs_and_go_back(self, client: Client) -> None:
        changed = await client.call(request("/control", {"output_tokens": 3, "directives": "cached_tokens=1"}))
        assert (changed.json["output_tokens"], changed.json["directives"]) == (3, "cached_tokens=1")
        usage = (await client.call(chat())).json["usage"]
        assert (usage["completion_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (3, 1)
        back = await client.call(request("/control", method="DELETE"))
        assert (back.json["output_tokens"], back.json["directives"]) == (8, "")

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ({"ttft": 5}, "ttft: not known"),
            ({"port": 5}, "port: not known"),
            ({"ttft_ms": "fast"}, "ttft_ms: does not take 'fast'"),
            ({"requests_per_minute": -1}, "requests_per_minute: does not take -1"),
            ({"directives": "fault=nothing"}, "directive 'fault'"),
            (b"{", "not JSON"),
        ],
    )
    async def test_a_wrong_change_is_refused_whole(self, client: Client, body: Any, words: str) -> None:
        sent = {"output_tokens": 1, **body} if isinstance(body, dict) else body
        reply = await client.call(request("/control", sent))
        assert reply.status == 400
        assert words in reply.json["error"]
        assert (await client.call(request("/control", method="GET"))).json["output_tokens"] == 8

    async def test_keys_are_counted_but_not_shown(self, client: Client) -> None:
        await client.call(request("/control", {"keys": ["sk-secret"]}))
        shown = await client.call(request("/control", method="GET"))
        assert shown.json["keys"] == 1
        assert b"sk-secret" not in shown.body
        assert (await client.call(chat())).status == 401
        assert (await client.call(chat(headers={"authorization": "Bearer sk-secret"}))).status == 200

    async def test_health_is_told_and_other_methods_are_not(self, client: Client) -> None:
        assert (await client.call(request("/health", method="GET"))).json == {"status": "ok"}
        assert (await client.call(request("/health", method="POST"))).status == 405
