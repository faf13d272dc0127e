"""Which models there are, who may use them, and where each is answered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from service.accounting.prices import Price
from service.config import ModelSettings, Settings
from service.domain.limits import UNLIMITED, Limits
from service.domain.principal import Principal
from service.errors import ModelNotFound

Mode = Literal["chat", "embeddings"]


class Route(msgspec.Struct, frozen=True):
    """One way to answer for a model."""

    provider: str
    """The provider's name in the configuration."""
    model: str
    """The provider's name for the model."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as it is listed."""

    name: str
    owned_by: str
    """The provider that is asked first."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One configured model, or a pattern of them."""

    name: str
    """The public name or pattern. From a closed set, so it serves as a metric label."""
    routes: tuple[Route, ...]
    """In order of preference."""
    modes: frozenset[str]
    limits: Limits = UNLIMITED
    """What all callers together may take of it."""
    price: Price | None = None
    """None is unknown, not zero."""


class ModelCatalogue:
    """The configured models, which a reload replaces.

    An exact name wins over a pattern, a longer pattern over a shorter one. What was found stays as it was found: a
    request goes on with the routes that it began with.
    """

    def __init__(self, models: Mapping[str, ModelSettings]) -> None:
        self._models = _Models(models)

    async def prepare(self, settings: Settings) -> Callable[[], None]:
        """See ``Reloadable`` in ``service.reloading``."""
        models = _Models(settings.models)

        def commit() -> None:
            self._models = models

        return commit

    def find(self, model: str, principal: Principal, mode: Mode) -> ModelEntry:
        """Return the entry that answers for ``model``; raise ``ModelNotFound`` with the allowed names."""
        models = self._models
        name = models.name_of(model)
        if name is None or not _may_use(principal, model):
            allowed = ", ".join(card.name for card in models.cards(principal)) or "none"
            raise ModelNotFound.at("model", f"{model!r} is not available; allowed: {allowed}", kind="model_not_found")
        if mode not in models.settings[name].modes:
            raise ModelNotFound.at("model", f"{model!r} does not do {mode}", kind="model_not_found")
        return models.entry(name, model)

    def cards(self, principal: Principal) -> tuple[ModelCard, ...]:
        """List what a principal may use, in the order of the settings: models, patterns, its own parts of patterns."""
        return self._models.cards(principal)

    def chat_routes(self, wanted: str | None = None) -> tuple[Route, ...]:
        """Give each provider's first route that is sure to mean one model, those of the model ``wanted`` before others.

        A provider that only has routes that take the caller's own name has none.
        """
        models = self._models
        first = models.name_of(wanted) if wanted is not None else None
        routes: dict[str, Route] = {}
        for name in (*([first] if first is not None else ()), *models.settings):
            settings = models.settings[name]
            if "chat" not in settings.modes:
                continue
            own_name = wanted if name == first else None if "*" in name else name
            for route in settings.routes:
                if upstream := route.model or own_name:
                    routes.setdefault(route.provider, Route(route.provider, upstream))
        return tuple(routes.values())

    def price_of(self, name: str) -> Price | None:
        """Return what the configured model of this name costs; None where that is unknown, or it is gone."""
        settings = self._models.settings.get(name)
        given = None if settings is None else settings.price_usd_per_million_tokens
        return None if given is None else Price.from_settings(given)

    def price_at(self, route: Route) -> Price | None:
        """Return what a model of :meth:`chat_routes` costs; None where that is unknown."""
        for name, settings in self._models.settings.items():
            given = settings.price_usd_per_million_tokens
            ours = (upstream.model or name for upstream in settings.routes if upstream.provider == route.provider)
            if given is not None and any(fnmatchcase(route.model, model) for model in ours):
                return Price.from_settings(given)
        return None


class _Models:
    """The models of one moment; never changed, only replaced."""

    def __init__(self, settings: Mapping[str, ModelSettings]) -> None:
        self.settings = settings
        self._exact = {name for name in settings if "*" not in name}
        self._patterns = sorted((name for name in settings if "*" in name), key=len, reverse=True)
        self._entries: dict[str, ModelEntry] = {}
        """Of those that have a name, once they were asked for; what callers write behind a pattern is an open set."""

    def entry(self, name: str, model: str) -> ModelEntry:
        """Return what answers for ``model``, which is configured under ``name``."""
        entry = self._entries.get(name)
        if entry is None:
            entry = _entry(name, model, self.settings[name])
            if name in self._exact:
                self._entries[name] = entry
        return entry

    def name_of(self, model: str) -> str | None:
        """Return the name, or the pattern, under which a model is configured."""
        return model if model in self._exact else self._pattern_of(model)

    def cards(self, principal: Principal) -> tuple[ModelCard, ...]:
        return tuple(
            ModelCard(listed, settings.routes[0].provider)
            for name, settings in self.settings.items()
            for listed in ((name,) if _may_use(principal, name) else self._narrowed(name, principal))
        )

    def _narrowed(self, pattern: str, principal: Principal) -> tuple[str, ...]:
        return tuple(
            allowed
            for allowed in principal.models
            if allowed not in self._exact and self._pattern_of(allowed) == pattern
        )

    def _pattern_of(self, model: str) -> str | None:
        return next((pattern for pattern in self._patterns if fnmatchcase(model, pattern)), None)


def _entry(name: str, model: str, settings: ModelSettings) -> ModelEntry:
    given = settings.price_usd_per_million_tokens
    return ModelEntry(
        name,
        tuple(Route(route.provider, route.model or model) for route in settings.routes),
        settings.modes,
        limits=Limits(**settings.limits.model_dump()),
        price=None if given is None else Price.from_settings(given),
    )


def _may_use(principal: Principal, model: str) -> bool:
    return any(allowed in ("*", model) or fnmatchcase(model, allowed) for allowed in principal.models)
