"""The secrets with which messages are signed, as they stand in the settings and in the files that these name."""

import logging
from collections.abc import Sequence
from pathlib import Path

from service.config import WebhookSettings
from service.config.watch import Version, version_of
from service.config.webhook_secret import secret_bytes

logger = logging.getLogger(__name__)


class WebhookSecrets:
    """Reads a file again when it has changed; what cannot be read leaves the secret that was read last."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._given = tuple(secret_bytes(secret.get_secret_value()) for secret in settings.secrets)
        self._files: dict[Path, tuple[Version | None, bytes | None]] = dict.fromkeys(
            settings.secret_files, (None, None)
        )

    @property
    def is_configured(self) -> bool:
        """Whether there are any, or files for them."""
        return bool(self._given or self._files)

    def __call__(self) -> Sequence[bytes]:
        """Return those that hold now."""
        return (*self._given, *(secret for path in self._files if (secret := self._read(path)) is not None))

    def _read(self, path: Path) -> bytes | None:
        version, secret = self._files[path]
        try:
            newest = version_of(path)
            if newest != version:
                self._files[path] = (newest, secret)
                secret = secret_bytes(path.read_text("utf-8").strip())
                self._files[path] = (newest, secret)
        except (OSError, ValueError) as error:
            logger.error("webhooks.secret_files: %s: %s", path, error)  # noqa: TRY400 - its message says it all
        return secret
