"""Reading the configuration again when its file changes, and telling what of it a running process can take over."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from service.config.sections import ProviderKind, Settings
from service.config.sources import CONFIG_VARIABLE, load_settings

RELOADED = (
    "models.",
    "providers.",
    "auth.keys.",
    "auth.keys_file",
    "auth.default_limits.",
    "auth.user_limits.",
)
"""What a running process takes over; the beginnings of names. Everything else needs a restart."""

_Version = tuple[int, int, int]


class SettingsSource:
    """The command line, the environment and the file that a process was started with."""

    def __init__(self, overrides: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._overrides = overrides
        self._environ = dict(environ)
        self._path = environ.get(CONFIG_VARIABLE) or None
        self._version: _Version | None = None

    @property
    def has_file(self) -> bool:
        """Whether there is anything that can change."""
        return self._path is not None

    def load(self) -> Settings:
        """Read, complete and check all settings. Raises ``ConfigError`` as :func:`load_settings` does."""
        # Before it is read: what is written while we read is seen as a change afterwards.
        self._version = self._look()
        return load_settings(self._overrides, self._environ)

    def has_changed(self) -> bool:
        """Whether the file is another one than when it was last read, well or not. Costs a stat.

        Kubernetes replaces a mounted file by moving a symbolic link, which changes the inode and not always the time. A
        file that is not there is in the middle of its replacement.
        """
        version = self._look()
        return version is not None and version != self._version

    def _look(self) -> _Version | None:
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)  # noqa: PTH116 - once a second, and a Path is of no use to it
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def changes(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Name the settings that differ: those that a running process takes over, and those that need a restart."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    reloaded = [name for name in differing if name.startswith(RELOADED)]
    return reloaded, [name for name in differing if not name.startswith(RELOADED)]


def with_addresses(settings: Settings, running: Settings) -> Settings:
    """Fill in where the embedded model and the simulator that this process started are reached.

    Raises ``ValueError`` naming the providers that would have to be started first.
    """
    providers = dict(settings.providers)
    missing: list[str] = []
    for name, provider in settings.providers.items():
        if provider.base_url is not None or provider.kind not in {ProviderKind.LOCAL, ProviderKind.SIMULATOR}:
            continue
        known = running.providers.get(name)
        if known is None or known.kind is not provider.kind:
            missing.append(f"providers.{name}")
        else:
            providers[name] = provider.model_copy(update={"base_url": known.base_url})
    if missing:
        raise ValueError(f"started only with the process: {', '.join(missing)}")
    return settings.model_copy(update={"providers": providers})


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    """Go through all values with their dotted names; an empty map has none."""
    if isinstance(value, BaseModel):
        for field in type(value).model_fields:
            yield from _leaves(getattr(value, field), f"{name}.{field}" if name else field)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    else:
        yield name, value.get_secret_value() if isinstance(value, SecretStr) else value
