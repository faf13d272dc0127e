"""Multipart bodies in whatever pieces they come, and those that would fill a process."""

import pytest
from fastapi import Request
from starlette.types import Message

from service.api.openai.uploads import PARTS_MAX, Upload
from service.errors import InvalidRequest

TYPE = (b"content-type", b"multipart/form-data; boundary=x")
FILE = b'--x\r\nContent-Type: text/plain\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
PURPOSE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
BODY = PURPOSE + FILE + b"one\r\ntwo\n\nthree\r\n--x--\r\n"


def upload(body: bytes, size: int) -> Upload:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]

    async def receive() -> Message:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    return Upload(Request({"type": "http", "headers": [TYPE]}, receive), line_bytes_max=100)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 30, 10_000])
async def test_a_body_in_pieces_of_any_size_is_the_same(size: int) -> None:
    made = upload(BODY, size)
    assert [line async for line in made.lines()] == [b"one", b"two", b"", b"three"]
    assert (made.filename, made.fields) == ("a.jsonl", {"purpose": "batch"})


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize(
    ("body", "why"),
    [
        (PURPOSE * PARTS_MAX + FILE + b"one\r\n--x--\r\n", "other fields"),
        (FILE + b"one\r\n" + FILE + b"two\r\n--x--\r\n", "twice"),
        (b"--x\r\nContent-Disposition: " + b"y" * 5_000 + b"\r\n\r\n", "header|broken"),
        (
            b"--x\r\nContent-Disposition: form-data; name=purpose\r\n\r\n" + b"y" * 2_000 + b"\r\n--x--\r\n",
            "1024 bytes",
        ),
        (FILE + b"y" * 101 + b"\n\r\n--x--\r\n", "more than 100 bytes"),
    ],
)
async def test_a_body_that_is_too_much_is_refused(body: bytes, why: str, size: int) -> None:
    with pytest.raises(InvalidRequest, match=why):
        _ = [line async for line in upload(body, size).lines()]
