"""Who calls, from the key they present; follows the file of keys as it changes."""

import asyncio
import logging
from collections.abc import Callable

from service.auth.keys import PREFIX, KeyRing, default_principal, has_valid_checksum
from service.config import AuthSettings, Settings
from service.config.watch import SETTLED_S, Watch
from service.domain.clock import Clock
from service.domain.principal import ANONYMOUS, Principal
from service.errors import Unauthenticated

logger = logging.getLogger(__name__)

FILE_CHECK_INTERVAL_S = SETTLED_S
"""Seconds between two looks at the file, of which two have to find it unchanged where it was written to just before: a
key that was taken out of it works at most twice so long. A look costs a stat."""


class KeyAuthenticator:
    """Knows the keys of the settings, and those of ``auth.keys_file`` as it stands.

    A file that cannot be used leaves the keys as they were: a slip in an edit must not lock everybody out.
    """

    def __init__(
        self, settings: AuthSettings, clock: Clock, *, on_file: Callable[[bool], object] | None = None
    ) -> None:
        """Read the keys; raise ``OSError`` or ``ValueError`` where the file cannot be used.

        ``on_file`` is told, of each version of the file, whether it is in use.
        """
        self._settings = settings
        self._clock = clock
        self._on_file = on_file
        self._watch = self._watched(settings)
        self._looked_at = clock.monotonic()
        self._ring = KeyRing.from_settings(settings)
        self._anonymous = default_principal(ANONYMOUS.name, settings)

    def authenticate(self, credential: str | None) -> Principal:
        """See :class:`service.auth.base.Authenticator`. Where authentication is off, everybody is ``anonymous``."""
        if self._settings.enabled is False:
            # None does not open the door: a profile's defaults have decided by now. What is presented does not matter,
            # since SDKs always send some key.
            return self._anonymous
        if not credential:
            raise Unauthenticated("an API key is needed: send it as 'Authorization: Bearer KEY'")
        self._follow_file()
        principal = self._ring.find(credential)
        if principal is not None:
            return principal
        if credential.startswith(PREFIX) and not has_valid_checksum(credential):
            raise Unauthenticated("the API key is mistyped or cut short: its checksum does not fit")
        raise Unauthenticated("the API key is not known")

    def renew(self, principal: Principal) -> Principal:
        """See :class:`service.auth.base.Authenticator`. Where authentication is off, everybody is ``anonymous``."""
        if self._settings.enabled is False:
            return self._anonymous
        self._follow_file()
        digest = principal.key_digest
        renewed = self._ring.named(principal.name) if digest is None else self._ring.holder(digest)
        if renewed is None:
            raise Unauthenticated("the API key is not known any more")
        return renewed

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        """See ``Reloadable`` in ``service.reloading``. Whether authentication is on does not change."""
        auth = settings.auth.model_copy(update={"enabled": self._settings.enabled})
        watch = self._watched(auth)
        if watch is not None and not watch.is_settled():
            await asyncio.sleep(SETTLED_S)
        ring = KeyRing.from_settings(auth)
        if watch is not None and not watch.is_taken():
            raise ValueError("auth.keys_file is being written")

        def commit() -> None:
            self._settings, self._watch, self._ring = auth, watch, ring
            self._anonymous = default_principal(ANONYMOUS.name, auth)
            self._tell(is_good=True)

        return commit

    def _follow_file(self) -> None:
        if self._watch is None or self._clock.monotonic() - self._looked_at < FILE_CHECK_INTERVAL_S:
            return
        self._looked_at = self._clock.monotonic()
        if not self._watch.has_settled_change():
            return
        # Taken even if reading fails: what is wrong is logged once for each change, not with each look.
        self._watch.take()
        try:
            ring = KeyRing.from_settings(self._settings)
        except (OSError, ValueError) as error:
            if not self._watch.is_taken():
                return  # it was written to while it was read, and is looked at again
            reason = error.strerror if isinstance(error, OSError) else f"it takes {error}"
            # Without a traceback, which adds nothing.
            logger.error("auth.keys_file cannot be used, the keys stay as they were: %s", reason)  # noqa: TRY400
            self._tell(is_good=False)
            return
        if self._watch.is_taken():
            self._ring = ring
            logger.info("auth.keys_file has changed: %d keys", len(ring))
            self._tell(is_good=True)

    def _watched(self, settings: AuthSettings) -> Watch | None:
        """Begin to follow the file of the settings, which is about to be read."""
        if settings.keys_file is None:
            return None
        watch = Watch(settings.keys_file, wall=self._clock.wall)
        watch.take()
        return watch

    def _tell(self, *, is_good: bool) -> None:
        if self._on_file is not None:
            self._on_file(is_good)
