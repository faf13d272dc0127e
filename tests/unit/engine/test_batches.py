"""Files of requests go to the store in pieces that a process can hold."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from service.domain.batch import BatchFile
from service.domain.generation import Completion, GenerationRequest
from service.domain.job import Job
from service.domain.principal import RequestContext
from service.engine.batches import CHUNK, CHUNK_BYTES, BatchService, BatchStore
from service.engine.generation import GenerationService
from service.engine.jobs import JobNews


class AnyBody:
    """A route that takes whatever it is sent."""

    def read(self, body: bytes) -> GenerationRequest:
        del body
        return cast("GenerationRequest", None)

    def write(self, completion: Completion, job: Job) -> bytes:
        raise NotImplementedError


@dataclass
class Pieces:
    """A store that remembers how lines came."""

    added: list[tuple[int, Sequence[bytes]]] = field(default_factory=list)

    async def add_lines(self, file_id: str, first: int, lines: Sequence[bytes]) -> None:
        del file_id
        self.added.append((first, lines))

    async def keep_file(self, file: BatchFile) -> BatchFile:
        return file


@pytest.mark.parametrize(
    ("lines", "padding", "pieces"),
    [(CHUNK * 2 + 1, 10, [CHUNK, CHUNK, 1]), (9, CHUNK_BYTES // 2, [2, 2, 2, 2, 1]), (3, CHUNK_BYTES, [1, 1, 1])],
)
async def test_a_piece_has_so_many_lines_and_so_many_bytes(lines: int, padding: int, pieces: list[int]) -> None:
    store = Pieces()
    service = BatchService(
        store=cast("BatchStore", store),
        routes={"/any": AnyBody()},
        generation=cast("GenerationService", None),
        news=JobNews(),
    )
    file = await service.upload(lambda: "a", written(lines, padding), RequestContext("request"))
    assert [len(added) for _, added in store.added] == pieces
    assert [first for first, _ in store.added] == [1 + sum(pieces[:at]) for at in range(len(pieces))]
    assert file.lines == lines


async def written(count: int, padding: int) -> AsyncIterator[bytes]:
    for number in range(count):
        line: Mapping[str, object] = {"custom_id": str(number), "method": "POST", "url": "/any", "body": {}}
        yield json.dumps({**line, "padding": "x" * padding}).encode()
