from pathlib import Path

import pytest

from load.arrivals import Arrival
from load.traces import TraceError, TraceFormat, read_trace

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9305900,396,109\n"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.5+00:00,10,2\n2024-05-10 00:00:00+00:00,1,1\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45.5,GPT-4,1087,0,1087,API log\n"
)
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
    '{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 48]}\n'
)


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("azure", AZURE, [Arrival(0, 374, 44), Arrival(4.25, 396, 109)]),
        ("azure", AZURE_2024, [Arrival(0, 1, 1), Arrival(0.5, 10, 2)]),
        ("burstgpt", BURSTGPT, [Arrival(0, 472, 18), Arrival(40.5, 1087, None)]),
        ("mooncake", MOONCAKE, [Arrival(0, 6955, 52, (46, 47)), Arrival(3.053, 6472, 26, (46, 48))]),
    ],
)
def test_each_format_is_read(tmp_path: Path, form: TraceFormat, text: str, expected: list[Arrival]) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    found = read_trace(path, form)
    assert [row.at_s for row in found] == pytest.approx([row.at_s for row in expected], abs=1e-5)
    assert [(row.input_tokens, row.output_tokens, row.prefix) for row in found] == [
        (row.input_tokens, row.output_tokens, row.prefix) for row in expected
    ]


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("azure", "", "line 1 has no column TIMESTAMP"),
        ("azure", BURSTGPT, "line 1 has no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("azure", AZURE.splitlines()[0], "no requests"),
        ("azure", AZURE + "yesterday,1,1\n", "line 4"),
        ("azure", AZURE + "2023-11-16 18:15:51,1\n", "line 4"),
        ("burstgpt", BURSTGPT + "50,GPT-4,-1,2,1,API log\n", "line 4: -1 is not a number of tokens"),
        ("mooncake", MOONCAKE + "{\n", "line 3"),
        ("mooncake", '{"timestamp": 1, "input_length": 2}\n', "line 1: 'output_length' is missing"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, form: TraceFormat, text: str, said: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(TraceError, match=said):
        read_trace(path, form)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere: No such file .* arrivals.path"):
        read_trace(tmp_path / "nowhere", "azure")
