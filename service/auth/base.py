"""What the API asks of authentication."""

from typing import Protocol

from service.domain.principal import Principal
from service.domain.ticket import Ticket


class Authenticator(Protocol):
    """Knows the callers' keys."""

    def authenticate(self, credential: str | None) -> Principal:
        """Return whose key this is; raise ``Unauthenticated`` if it is nobody's, or None."""
        ...

    def renew(self, principal: Principal) -> Principal:
        """Return whose the key that was shown is now, for what outlives that moment.

        Where nobody knows any more which key it was, the name has to do. Raises ``Unauthenticated`` where the key is
        not known any more, whatever other key may bear its name.
        """
        ...


class TicketStore(Protocol):
    """Keeps tickets until they are used or too old. One ticket is redeemed at most once, whoever asks."""

    async def issue(self, principal: Principal) -> Ticket:
        """Make a ticket that stands for this principal.

        Raises ``StoreUnavailable`` where the store does not answer, ``Overloaded`` where it is full.
        """
        ...

    async def redeem(self, value: str) -> Principal:
        """Use a ticket up and return whom it stands for.

        Raises ``Unauthenticated`` for a ticket that was never issued, was used or is too old, and ``StoreUnavailable``
        where the store does not answer: that is no fault of the caller's.
        """
        ...
