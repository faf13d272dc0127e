"""What the settings must be to each other and to this machine; each alone is right by then."""

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from service.config.keys import digest_of, fits_a_header, read_keys_file
from service.config.problems import Problem, shown
from service.config.profiles import Installed, is_loopback
from service.config.sections import (
    AuthSettings,
    LimitSettings,
    Profile,
    ProviderKind,
    ProviderSettings,
    RateSettings,
    Settings,
)

OFFICIAL_HOSTS = {ProviderKind.OPENAI: "api.openai.com", ProviderKind.ANTHROPIC: "api.anthropic.com"}
"""Where a key is needed in any case."""


def problems_between(settings: Settings, installed: Installed) -> list[Problem]:
    """Find what does not fit together, once the profile has filled in its defaults."""
    return [
        *_in_server(settings, installed),
        *_in_cors(settings),
        *_in_providers(settings, installed),
        *_in_models(settings),
        *_in_auth(settings),
        *_in_embedded(settings),
    ]


def _in_server(settings: Settings, installed: Installed) -> Iterator[Problem]:
    server = settings.server
    if server.port and server.port == server.metrics_port and server.metrics_host == server.host:
        yield Problem(
            "server.metrics_port", f"{server.port}, the same as server.port", "another port, or 0 for a free one"
        )
    embedded = settings.profile is Profile.DEVELOPMENT and settings.embedded.store and installed.embedded_store
    if server.workers > 1 and settings.redis.url is None and not embedded:
        yield Problem(
            "server.workers",
            f"{server.workers}, and no store that the processes could share",
            "1; or more together with redis.url",
        )


def _in_cors(settings: Settings) -> Iterator[Problem]:
    if settings.cors.credentials and "*" in settings.cors.origins:
        yield Problem(
            "cors.credentials", "true while cors.origins is *", "false; or true together with the exact origins"
        )


def _in_providers(settings: Settings, installed: Installed) -> Iterator[Problem]:
    for name, provider in settings.providers.items():
        place = f"providers.{name}"
        if provider.kind is ProviderKind.LOCAL and provider.base_url is None and not installed.embedded_model:
            yield Problem(
                f"{place}.kind", "'local', and the embedded model is not installed", "pip install 'llm-api[local]'"
            )
        yield from _in_limits(f"{place}.limits", provider.limits)
        if _needs_a_key(provider) and not (provider.keys or provider.key_files):
            conventional = f" (or {provider.kind.upper()}_API_KEY)" if name == provider.kind.value else ""
            yield Problem(f"{place}.keys", "nothing", f"at least one key, or key_files{conventional}")
        for number, path in enumerate(provider.key_files):
            yield from _in_key_file(f"{place}.key_files.{number}", path)


def _in_key_file(setting: str, path: Path) -> Iterator[Problem]:
    takes = "a readable file with one key of visible ASCII characters in it"
    unusable = list(_in_file(setting, path, takes))
    yield from unusable
    # Blanks and line ends around it are no part of the key.
    if not unusable and not fits_a_header(path.read_text("utf-8").strip()):
        yield Problem(setting, f"{shown(str(path))}, in which something else stands", takes)


def _needs_a_key(provider: ProviderSettings) -> bool:
    official = OFFICIAL_HOSTS.get(provider.kind)
    return official is not None and (provider.base_url is None or provider.base_url.host == official)


def _in_models(settings: Settings) -> Iterator[Problem]:
    names = ", ".join(settings.providers) or "none is configured"
    for name, model in settings.models.items():
        yield from _in_limits(f"models.{name}.limits", model.limits)
        for number, route in enumerate(model.routes):
            if route.provider not in settings.providers:
                yield Problem(
                    f"models.{name}.routes.{number}.provider",
                    shown(route.provider),
                    f"the name of a configured provider: {names}",
                )
    wanted = settings.readiness.model
    if wanted is not None and not any(fnmatchcase(wanted, name) for name in settings.models):
        yield Problem(
            "readiness.model", shown(wanted), f"the name of a configured model: {', '.join(settings.models) or 'none'}"
        )


def _in_auth(settings: Settings) -> Iterator[Problem]:
    auth = settings.auth
    host = settings.server.host
    if auth.enabled is False and settings.profile is Profile.PRODUCTION:
        yield Problem("auth.enabled", "false in production", "true with at least one key in auth.keys")
    elif auth.enabled is False and not is_loopback(host):
        yield Problem(
            "auth.enabled",
            f"false while server.host is {shown(host)}, which others can reach",
            "true with at least one key in auth.keys; or false with server.host=127.0.0.1",
        )
    if auth.enabled and not auth.keys and auth.keys_file is None:
        reason = "" if is_loopback(host) else f", and others can reach server.host {shown(host)}"
        yield Problem("auth.keys", f"nothing{reason}", "at least one key; `llm-api keys new NAME` makes one")
    owners: dict[bytes, str] = {}
    for name, key in auth.keys.items():
        other = owners.setdefault(digest_of(key.key.get_secret_value()), name)
        if other != name:
            yield Problem(f"auth.keys.{name}.key", f"the same key as {other}'s", "a key of its own for each name")
    if auth.keys_file is not None:
        yield from _in_keys_file(auth.keys_file, owners)
    yield from _in_callers_limits(auth)


def _in_callers_limits(auth: AuthSettings) -> Iterator[Problem]:
    """Look at what each key is limited by in the end: its own limits, and field by field the default's."""
    own = [key.limits for key in auth.keys.values()]
    if not own or auth.keys_file is not None:
        own.append(LimitSettings())  # of those whom the settings do not name
    for name, key in auth.keys.items():
        yield from _in_limits(f"auth.keys.{name}.limits", key.limits, (auth.default_limits,))
    yield from _in_limits("auth.default_limits", auth.default_limits, own)
    yield from _in_limits("auth.user_limits", auth.user_limits)


def _in_limits(place: str, limits: RateSettings, others: Sequence[RateSettings] = ()) -> Iterator[Problem]:
    """Find a burst that limits nothing: its rate stands neither beside it nor in each of ``others``."""
    for burst, rate in (("request_burst", "requests_per_minute"), ("token_burst", "tokens_per_minute")):
        rates = [getattr(other, rate) for other in others] or [None]
        if getattr(limits, burst) is not None and getattr(limits, rate) is None and None in rates:
            yield Problem(f"{place}.{burst}", f"a burst without {rate}, which limits nothing", f"{rate} beside it")


def _in_keys_file(path: Path, owners: Mapping[bytes, str]) -> Iterator[Problem]:
    takes = "a readable file with a line name:key or name:sha256:<64 hex digits> for each key"
    unusable = list(_in_file("auth.keys_file", path, takes))
    yield from unusable
    if unusable:
        return
    try:
        read_keys_file(path, owners)
    except ValueError as error:
        yield Problem("auth.keys_file", f"{shown(str(path))}, in which something else stands", str(error))


def _in_embedded(settings: Settings) -> Iterator[Problem]:
    folder = settings.embedded.cache_dir
    if folder is None:
        return
    # It is made when it is needed, below the nearest folder that is there.
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    got = None
    if not nearest.is_dir():
        got = (
            "is no folder" if nearest == folder.absolute() else f"lies below {shown(str(nearest))}, which is no folder"
        )
    elif not os.access(nearest, os.W_OK | os.X_OK):
        got = "cannot be written"
    if got:
        yield Problem("embedded.cache_dir", f"{shown(str(folder))}, which {got}", "a folder that can be written")


def _in_file(setting: str, path: Path, takes: str) -> Iterator[Problem]:
    try:
        if not path.read_text("utf-8").strip():
            yield Problem(setting, f"{shown(str(path))}, which is empty", takes)
    except UnicodeDecodeError:
        yield Problem(setting, f"{shown(str(path))}, which is not text", takes)
    except OSError as error:
        yield Problem(setting, f"{shown(str(path))} ({error.strerror})", takes)
