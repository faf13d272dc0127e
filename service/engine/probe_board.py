"""What a fleet knows of its providers, and the lease by which one process makes the next check for all: a port."""

from typing import Protocol

from service.domain.probe import Evidence, Probe, Sight, Subject


class ProbeBoard(Protocol):
    """Shared by all processes that use one store, so that a provider is asked once for all of them.

    Nothing raises: without the store, a board is one process's own.
    """

    async def look(
        self, subject: Subject, *, fresh_s: float, lease_s: float, evidence: Evidence | None = None
    ) -> Sight:
        """Tell what is known, after telling what this process's traffic showed; claim the next check if it is due.

        It is due where neither a check nor an answer to real traffic is younger than ``fresh_s``. One caller gets it,
        and again another one where nothing was published for ``lease_s``.
        """
        ...

    async def publish(self, subject: Subject, probe: Probe) -> Sight:
        """Tell all what a check that was just made came to, and what is known with it."""
        ...
