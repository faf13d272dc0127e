"""When faults befall calls, and what those of the body do to answers."""

from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest

from service.simulator.directives import Directives
from service.simulator.faults import FaultCounters, damage_plain, damage_script
from service.simulator.plan import Frame, Script
from service.simulator.vendors import ANTHROPIC, OPENAI, Vendor


def pattern(directives: Directives, calls: int, *, seed: int = 0) -> str:
    counters = FaultCounters(seed)
    return "".join("x" if counters.befalls(directives, "sim") else "." for _ in range(calls))


def test_a_fault_befalls_every_call_unless_it_is_counted() -> None:
    assert pattern(Directives(fault="500"), 4) == "xxxx"
    assert pattern(Directives(fault="500", times=2), 4) == "xx.."
    assert pattern(Directives(fault="500", every=3), 7) == "..x..x."
    assert pattern(Directives(fault="500", every=2, times=4), 8) == ".x.x...."


def test_a_share_of_calls_is_the_same_for_the_same_seed() -> None:
    asked = Directives(fault="500", share=0.25)
    first = pattern(asked, 4000)
    assert pattern(asked, 4000) == first
    assert pattern(asked, 4000, seed=1) != first
    assert 850 < first.count("x") < 1150
    assert "x" not in pattern(Directives(fault="500", share=0), 100)
    assert "." not in pattern(Directives(fault="500", share=1), 100)


def test_counts_are_kept_apart_by_key() -> None:
    counters = FaultCounters(0)
    asked = Directives(fault="500", times=1)
    assert counters.befalls(replace(asked, key="a"), "sim")
    assert counters.befalls(replace(asked, key="b"), "sim")
    assert not counters.befalls(replace(asked, key="a"), "other")
    counters.clear()
    assert counters.befalls(replace(asked, key="a"), "sim")


def script() -> Script:
    def frames() -> Iterator[Frame]:
        for number in range(5):
            yield b'data: {"n":%d,"of":{"all":5}}\n\n' % number, 1
        yield b"data: end\n\n", 0

    return Script(b"data: begin\n\n", frames(), chunks=5)


def events(damaged: Script) -> list[bytes]:
    return [data.removeprefix(b"data: ").strip() for data, _ in damaged.frames]


@pytest.mark.parametrize("vendor", [OPENAI, ANTHROPIC], ids=lambda vendor: vendor.name)
class TestStreams:
    def test_eof_ends_after_so_many_tokens_without_an_end_mark(self, vendor: Vendor) -> None:
        damaged = damage_script(script(), Directives(fault="eof", after_chunks=2), vendor.wreckage)
        assert [orjson.loads(event)["n"] for event in events(damaged)] == [0, 1]
        assert not damaged.complete

    def test_an_answer_shorter_than_the_place_still_gets_the_fault(self, vendor: Vendor) -> None:
        damaged = damage_script(script(), Directives(fault="eof", after_chunks=99), vendor.wreckage)
        assert [orjson.loads(event)["n"] for event in events(damaged)] == [0, 1, 2, 3, 4]

    def test_an_error_event_is_the_last_one(self, vendor: Vendor) -> None:
        found = events(damage_script(script(), Directives(fault="error_in_200", after_chunks=1), vendor.wreckage))
        assert len(found) == 2
        assert b'"error"' in found[-1]

    def test_one_malformed_event_stands_among_sound_ones(self, vendor: Vendor) -> None:
        found = events(damage_script(script(), Directives(fault="malformed", after_chunks=1), vendor.wreckage))
        assert found[0] == b'{"n":0,"of":{"all":5}}'
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(found[1])
        assert len(found) == 6
        assert found[-1] == b"end"

    def test_one_misshapen_event_is_json(self, vendor: Vendor) -> None:
        damaged = damage_script(script(), Directives(fault="wrong_schema"), vendor.wreckage)
        data = events(damaged)[3].rpartition(b"data: ")[2]
        assert "n" not in orjson.loads(data)

    def test_an_empty_answer_has_no_event(self, vendor: Vendor) -> None:
        damaged = damage_script(script(), Directives(fault="empty"), vendor.wreckage)
        assert (damaged.preamble, list(damaged.frames)) == (b"", [])

    def test_whole_answers_break_too(self, vendor: Vendor) -> None:
        body = orjson.dumps({"choices": [1], "content": [1], "usage": {"tokens": 3}, "id": "x"})
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(damage_plain(body, "malformed", vendor.wreckage))
        assert "error" in orjson.loads(damage_plain(body, "error_in_200", vendor.wreckage))
        broken = orjson.loads(damage_plain(body, "wrong_schema", vendor.wreckage))
        assert ("choices" if vendor is OPENAI else "content") not in broken
        assert broken["usage"] == {"tokens": "3 tokens"}
        assert damage_plain(body, "empty", vendor.wreckage) == b""
