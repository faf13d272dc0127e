"""Who calls, from the key they present; follows the file of keys as it changes."""

import logging
import os
from collections.abc import Callable
from typing import NamedTuple

from service.auth.keys import PREFIX, KeyRing, default_principal, has_valid_checksum
from service.config import AuthSettings, Settings
from service.domain.clock import Clock
from service.domain.principal import ANONYMOUS, Principal
from service.errors import Unauthenticated

logger = logging.getLogger(__name__)

FILE_CHECK_INTERVAL_S = 1.0
"""Seconds between two looks at the file: how long a key that was taken out of it works at most. A look costs a stat."""


class _Version(NamedTuple):
    """What changes when a file is written, or replaced as Kubernetes does with mounted secrets."""

    modified_ns: int
    size_bytes: int
    inode: int


class KeyAuthenticator:
    """Knows the keys of the settings, and those of ``auth.keys_file`` as it stands.

    A file that cannot be used leaves the keys as they were: a slip in an edit must not lock everybody out.
    """

    def __init__(self, settings: AuthSettings, clock: Clock) -> None:
        """Read the keys; raise ``OSError`` or ``ValueError`` where the file cannot be used."""
        self._settings = settings
        self._clock = clock
        self._version = _look(settings)
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
        """See :class:`service.auth.base.Authenticator`. Where authentication is off, nobody's name is looked up."""
        if self._settings.enabled is False:
            return principal
        self._follow_file()
        renewed = self._ring.owner(principal.name)
        if renewed is None:
            raise Unauthenticated("the API key is not known any more")
        return renewed

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        """See ``Reloadable`` in ``service.reloading``. Whether authentication is on does not change."""
        auth = settings.auth.model_copy(update={"enabled": self._settings.enabled})
        version = _look(auth)
        ring = KeyRing.from_settings(auth)

        def commit() -> None:
            self._settings, self._version, self._ring = auth, version, ring
            self._anonymous = default_principal(ANONYMOUS.name, auth)

        return commit

    def _follow_file(self) -> None:
        if self._settings.keys_file is None or self._clock.monotonic() - self._looked_at < FILE_CHECK_INTERVAL_S:
            return
        self._looked_at = self._clock.monotonic()
        version = _look(self._settings)
        if version == self._version:
            return
        # Remembered even if reading fails: what is wrong is logged once for each change, not once a second.
        self._version = version
        try:
            self._ring = KeyRing.from_settings(self._settings)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"it takes {error}"
            # Without a traceback, which adds nothing.
            logger.error("auth.keys_file cannot be used, the keys stay as they were: %s", reason)  # noqa: TRY400
        else:
            logger.info("auth.keys_file has changed: %d keys", len(self._ring))


def _look(settings: AuthSettings) -> _Version | None:
    if settings.keys_file is None:
        return None
    try:
        status = os.stat(settings.keys_file)  # noqa: PTH116 - the hot path needs no Path
    except OSError:
        return None
    return _Version(status.st_mtime_ns, status.st_size, status.st_ino)
