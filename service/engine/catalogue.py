"""Which models there are, who may use them, and where each is answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from service.config import ModelSettings
from service.domain.principal import Principal
from service.errors import ModelNotFound

Mode = Literal["chat", "embeddings"]


@dataclass(frozen=True, slots=True)
class Route:
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


class ModelCatalogue:
    """The configured models. An exact name wins over a pattern, a longer pattern over a shorter one."""

    def __init__(self, models: Mapping[str, ModelSettings]) -> None:
        self._exact = {name: settings for name, settings in models.items() if "*" not in name}
        self._patterns = sorted((name for name in models if "*" in name), key=len, reverse=True)
        self._models = models

    def find(self, model: str, principal: Principal, mode: Mode) -> ModelEntry:
        """Return the entry that answers for ``model``; raise ``ModelNotFound`` with the allowed names."""
        name = model if model in self._exact else self._pattern_of(model)
        if name is None or not _may_use(principal, model):
            allowed = ", ".join(card.name for card in self.cards(principal)) or "none"
            raise ModelNotFound.at("model", f"{model!r} is not available; allowed: {allowed}", kind="model_not_found")
        settings = self._models[name]
        if mode not in settings.modes:
            raise ModelNotFound.at("model", f"{model!r} does not do {mode}", kind="model_not_found")
        routes = tuple(Route(route.provider, route.model or model) for route in settings.routes)
        return ModelEntry(name, routes, settings.modes)

    def cards(self, principal: Principal) -> tuple[ModelCard, ...]:
        """List what a principal may use, in the order of the settings: models, patterns, its own parts of patterns."""
        return tuple(
            ModelCard(listed, settings.routes[0].provider)
            for name, settings in self._models.items()
            for listed in ((name,) if _may_use(principal, name) else self._narrowed(name, principal))
        )

    def first_chat_model(self) -> str | None:
        """Name the first configured model that can be asked by name."""
        return next((name for name, settings in self._exact.items() if "chat" in settings.modes), None)

    def _narrowed(self, pattern: str, principal: Principal) -> tuple[str, ...]:
        return tuple(
            allowed
            for allowed in principal.models
            if allowed not in self._exact and self._pattern_of(allowed) == pattern
        )

    def _pattern_of(self, model: str) -> str | None:
        return next((pattern for pattern in self._patterns if fnmatchcase(model, pattern)), None)


def _may_use(principal: Principal, model: str) -> bool:
    return any(allowed in ("*", model) or fnmatchcase(model, allowed) for allowed in principal.models)
