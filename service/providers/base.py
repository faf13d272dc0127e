"""What the engine asks of a provider."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from service.domain.clock import Deadline
from service.domain.generation import Chunk, Completion, EmbeddingRequest, EmbeddingResult, GenerationRequest


class Provider(Protocol):
    """One vendor, or one server that speaks a vendor's dialect.

    ``upstream_model`` is the name by which the provider knows the model; ``request.model`` is the caller's.
    Every method raises only members of :class:`service.errors.UpstreamError`, or ``InvalidRequest`` (naming the field)
    where this provider cannot do what is asked; a cancelled call closes its upstream connection before it returns.
    """

    @property
    def name(self) -> str:
        """The name in the configuration."""
        ...

    async def complete(self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline) -> Completion:
        """Generate a whole answer in one upstream call."""
        ...

    def stream(
        self, request: GenerationRequest, *, upstream_model: str, deadline: Deadline
    ) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """Open a stream; leaving the context closes the upstream connection.

        The iterator ends only after a finish reason was seen; otherwise it raises. Events that came in one read are
        one chunk, and are never held back for one that has not come.
        """
        ...

    async def embed(self, request: EmbeddingRequest, *, upstream_model: str, deadline: Deadline) -> EmbeddingResult:
        """Turn texts into vectors in one upstream call."""
        ...
