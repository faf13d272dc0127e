"""How what a stream gives becomes bytes; the surfaces in ``service.api`` each have their own."""

from typing import Protocol, TypeVar

from service.errors import ServiceError

T_contra = TypeVar("T_contra", contravariant=True)


class Framing(Protocol[T_contra]):
    """Makes the events of one response, and may keep its state. Each call returns whole events, or nothing."""

    def chunk(self, chunk: T_contra) -> bytes:
        """Frame what came; empty where it gives nothing to send."""
        ...

    def end(self) -> bytes:
        """Frame the end of a generation that finished."""
        ...

    def failure(self, error: ServiceError) -> bytes:
        """Frame the end of one that failed after the status was sent. Always one event, whatever came before."""
        ...
