"""What a queue of jobs has to be able to do before it can be tried under faults."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class State(NamedTuple):
    """How a job stands: ``pending``, ``complete``, ``failed`` or ``cancelled``, and its text."""

    state: str
    result: str | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a candidate is given."""

    store: str
    """The address of an empty Redis-protocol server: ``unix:///…``."""
    upstream: str
    """The address of the simulator."""
    concurrency: int
    """Jobs that one worker does at once."""
    model_prefix: str = "job-"
    """A job is one streamed chat completion, asked of a model whose name is this and the job's: so the ledger tells."""
    max_tokens: int = 10


class Command(NamedTuple):
    """How a process is started."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


class Queue(Protocol):
    """A candidate at work."""

    async def submit(self, job: str) -> None:
        """Accept a job; raise if it was not."""
        ...

    async def state(self, job: str) -> State:
        """Tell how a job stands."""
        ...

    async def cancel(self, job: str) -> bool:
        """Cancel a job; whether that ended it."""
        ...

    def worker(self, number: int) -> Command:
        """Return how a worker is started."""
        ...


class Candidate(Protocol):
    """An engine to be tried."""

    name: str

    def opened(self, surroundings: Surroundings) -> AbstractAsyncContextManager[Queue]:
        """Start what accepts jobs."""
        ...
