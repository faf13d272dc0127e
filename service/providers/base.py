"""What the engine asks of a provider."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from service.domain.clock import Deadline
from service.domain.generation import Chunk, Completion, EmbeddingRequest, EmbeddingResult, GenerationRequest


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """One of our keys at a provider."""

    secret: str | None = field(repr=False)
    """None for a provider that is asked without a key."""
    fingerprint: str
    """What logs may show of it: the first digits of its SHA-256."""


def any_key(_: ProviderKey) -> bool:
    """Admit every key."""
    return True


class KeyPool(Protocol):
    """A provider's keys, of which those that are refused or limited are left alone for a time."""

    def take(
        self, upstream_model: str, admits: Callable[[ProviderKey], bool] = any_key, *, tokens: int = 0
    ) -> ProviderKey | None:
        """Return the next key in turn that may be used for a model now; None if ``admits`` bars all of them.

        It is asked about keys that could be used, until it says yes. Raises ``UpstreamThrottled`` if those that are
        left have to wait, with the time until the first may go on, and ``UpstreamMisconfigured`` if there are none.
        ``tokens`` is what the call is estimated to take; it counts as sent from here on.
        """
        ...

    def wait_s(self, upstream_model: str, *, tokens: int = 0, keep: float = 0.0) -> float:
        """Return seconds until some key may be used for a model, as far as the vendor's limits go: 0 for now.

        ``keep`` is the part of the vendor's limit that must be left after the call. It changes nothing, and says
        nothing of keys that are refused: where there are no others it is 0, and :meth:`take` has the word.
        """
        ...

    def give_back(self, key: ProviderKey, upstream_model: str, *, tokens: int = 0) -> None:
        """Undo a :meth:`take` with the same ``tokens`` whose call is not made, before anything else is done with it."""
        ...

    def all_refused(self) -> bool:
        """Whether calls have shown, as far as they can, that the provider refuses each of the keys.

        A refusal is otherwise about one of several, and says nothing of the provider.
        """
        ...

    def retire(self) -> None:
        """Tell nobody any more what becomes of the keys: others are in their place, or none."""
        ...


class Provider(Protocol):
    """One vendor, or one server that speaks a vendor's dialect.

    ``upstream_model`` is the name by which the provider knows the model; ``request.model`` is the caller's.
    Every method raises only members of :class:`service.errors.UpstreamError`, or ``InvalidRequest`` (naming the field)
    where this provider cannot do what is asked; a cancelled call closes its upstream connection before it returns.
    A call makes one attempt, with ``key`` or the next one that can be used, and notes in ``keys`` what becomes of it.
    """

    @property
    def name(self) -> str:
        """The name in the configuration."""
        ...

    @property
    def keys(self) -> KeyPool:
        """What it can be asked with."""
        ...

    async def complete(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> Completion:
        """Generate a whole answer in one upstream call."""
        ...

    def stream(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """Open a stream; leaving the context closes the upstream connection.

        The iterator ends only after a finish reason was seen; otherwise it raises. Events that came in one read are
        one chunk, and are never held back for one that has not come.
        """
        ...

    async def embed(
        self, request: EmbeddingRequest, *, upstream_model: str, deadline: Deadline, key: ProviderKey | None = None
    ) -> EmbeddingResult:
        """Turn texts into vectors in one upstream call."""
        ...
