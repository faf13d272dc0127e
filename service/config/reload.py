"""Reading the configuration again when its file changes, and telling what of it a running process can take over."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from service.config.problems import ConfigError, Problem
from service.config.sections import ProviderKind, Settings
from service.config.sources import CONFIG_VARIABLE, load_settings
from service.config.watch import Watch

RELOADED = (
    "admission",
    "auth.default_limits",
    "auth.keys",
    "auth.keys_file",
    "auth.user_limits",
    "models",
    "providers",
    "readiness",
    "resilience",
)
"""What a running process takes over: sections, and single settings of some. Everything else needs a restart."""


class SettingsSource:
    """The command line, the environment and the file that a process was started with."""

    def __init__(self, overrides: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._overrides = overrides
        self._environ = dict(environ)
        path = environ.get(CONFIG_VARIABLE) or None
        self._watch = None if path is None else Watch(path)
        self._was_loaded = False

    @property
    def has_file(self) -> bool:
        """Whether there is anything that can change."""
        return self._watch is not None

    def load(self) -> Settings:
        """Read, complete and check all settings. Raises ``ConfigError`` as :func:`load_settings` does.

        From the second time on, a file in which no setting stands is wrong: it was something else before.
        """
        if self._watch is not None:
            self._watch.take()
        settings = load_settings(self._overrides, self._environ, takes_an_empty_file=not self._was_loaded)
        self._was_loaded = True
        return settings

    def has_changed(self) -> bool:
        """Whether the file is another one than when it was last read, well or not, and whole. Costs a stat.

        A file that is not there is in the middle of its replacement.
        """
        watch = self._watch
        return watch is not None and watch.look() is not None and watch.has_settled_change()

    def is_as_loaded(self) -> bool:
        """Whether nobody has written to the file since it was about to be read."""
        return self._watch is None or self._watch.is_taken()


def changes(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Name the settings that differ: those that a running process takes over, and those that need a restart."""
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    reloaded = [name for name in differing if _is_reloaded(name)]
    return reloaded, [name for name in differing if not _is_reloaded(name)]


def with_reloaded(running: Settings, new: Settings) -> Settings:
    """Return what is in force once a change was taken over: the rest stays as the process was started."""
    update: dict[str, Any] = {}
    for name in RELOADED:
        section, _, setting = name.partition(".")
        value = getattr(new, section)
        if setting:
            before = update.get(section, getattr(running, section))
            value = before.model_copy(update={setting: getattr(value, setting)})
        update[section] = value
    return running.model_copy(update=update)


def refuse_another_profile(settings: Settings, running: Settings) -> None:
    """Raise ``ConfigError`` where the profile differs: that is what a file looks like of which half is missing."""
    if settings.profile is not running.profile:
        takes = f"{running.profile.value!r} while the process runs; a restart takes another one"
        raise ConfigError([Problem("profile", repr(settings.profile.value), takes)])


def _is_reloaded(name: str) -> bool:
    return any(name == taken or name.startswith(f"{taken}.") for taken in RELOADED)


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
