"""Which models there are, and who may use them."""

import pytest

from service.config import ModelSettings, Settings
from service.domain.principal import ANONYMOUS, Principal
from service.engine.catalogue import ModelCatalogue, ModelEntry, Route
from service.errors import ModelNotFound


def catalogue(**models: list[dict[str, str]]) -> ModelCatalogue:
    return ModelCatalogue({name: ModelSettings.model_validate({"routes": routes}) for name, routes in models.items()})


FAST = [{"provider": "p", "model": "up"}, {"provider": "q"}]
MODELS = catalogue(**{"fast": FAST, "team/*": [{"provider": "p"}], "team/a/*": [{"provider": "q"}], "team/a/x": FAST})


def test_routes_come_in_order_of_preference_with_the_providers_name_for_the_model() -> None:
    entry = MODELS.find("fast", ANONYMOUS, "chat")
    assert entry == ModelEntry("fast", (Route("p", "up"), Route("q", "fast")), frozenset({"chat", "embeddings"}))


@pytest.mark.parametrize(
    ("model", "entry"), [("team/b", "team/*"), ("team/a/y", "team/a/*"), ("team/a/x", "team/a/x"), ("team/a", "team/*")]
)
def test_an_exact_name_wins_over_a_pattern_and_a_longer_pattern_over_a_shorter(model: str, entry: str) -> None:
    found = MODELS.find(model, ANONYMOUS, "chat")
    assert found.name == entry
    if "*" in entry:
        assert found.routes[0].model == model


@pytest.mark.parametrize("model", ["", "FAST", "fast ", "team", "xteam/a", "*"])
def test_an_unknown_model_is_named_with_those_there_are(model: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        MODELS.find(model, ANONYMOUS, "chat")
    assert caught.value.message == f"model: {model!r} is not available; allowed: fast, team/*, team/a/*, team/a/x"
    assert [fault.field for fault in caught.value.fields] == ["model"]


def test_a_principal_sees_and_uses_its_own_models_alone() -> None:
    bob = Principal("bob", models=("team/a/*",))
    assert [card.name for card in MODELS.cards(bob)] == ["team/a/*", "team/a/x"]
    assert MODELS.find("team/a/y", bob, "chat").name == "team/a/*"
    with pytest.raises(ModelNotFound, match=r"'fast' is not available; allowed: team/a/\*, team/a/x$"):
        MODELS.find("fast", bob, "chat")


def test_a_principals_exact_name_under_a_pattern_is_listed_as_it_may_be_used() -> None:
    carol = Principal("carol", models=("team/b", "fast", "nowhere"))
    assert MODELS.find("team/b", carol, "chat").name == "team/*"
    assert [(card.name, card.owned_by) for card in MODELS.cards(carol)] == [("fast", "p"), ("team/b", "p")]
    with pytest.raises(ModelNotFound, match=r"allowed: fast, team/b$"):
        MODELS.find("team/c", carol, "chat")


def test_a_principals_narrower_pattern_is_listed_in_place_of_the_wider() -> None:
    erin = Principal("erin", models=("team/b*",))
    assert MODELS.find("team/bc", erin, "chat").name == "team/*"
    assert [card.name for card in MODELS.cards(erin)] == ["team/b*"]


def test_a_principal_without_models_is_told_none() -> None:
    with pytest.raises(ModelNotFound, match=r"allowed: none$"):
        MODELS.find("fast", Principal("dave", models=("x",)), "chat")


def test_a_model_that_does_not_do_what_is_asked_is_not_found() -> None:
    models = ModelCatalogue(
        {"vectors": ModelSettings.model_validate({"routes": [{"provider": "p"}], "modes": ["embeddings"]})}
    )
    assert models.find("vectors", ANONYMOUS, "embeddings").name == "vectors"
    with pytest.raises(ModelNotFound, match="does not do chat"):
        models.find("vectors", ANONYMOUS, "chat")
    assert models.chat_routes() == ()


def test_each_provider_has_the_first_route_that_is_sure_to_mean_one_model() -> None:
    models = catalogue(
        **{
            "a/*": [{"provider": "p"}, {"provider": "q", "model": "fixed"}],
            "b": [{"provider": "p"}, {"provider": "q"}],
            "c": [{"provider": "r", "model": "up"}],
            "d/*": [{"provider": "s"}],
        }
    )
    assert models.chat_routes() == (Route("q", "fixed"), Route("p", "b"), Route("r", "up"))


@pytest.mark.parametrize(
    ("wanted", "routes"),
    [
        ("c", (Route("p", "up"), Route("q", "b"))),
        ("a/x", (Route("q", "a/x"), Route("p", "b"))),
        ("unknown", (Route("p", "b"), Route("q", "b"))),
    ],
)
def test_the_wanted_models_routes_come_before_others(wanted: str, routes: tuple[Route, ...]) -> None:
    models = catalogue(
        **{
            "a/*": [{"provider": "q"}],
            "b": [{"provider": "p"}, {"provider": "q"}],
            "c": [{"provider": "p", "model": "up"}],
        }
    )
    assert models.chat_routes(wanted) == routes


async def test_what_was_found_stays_when_the_models_are_replaced() -> None:
    models = catalogue(fast=FAST)
    entry = models.find("fast", ANONYMOUS, "chat")
    given = {"models": {"slow": {"routes": FAST}}, "providers": {}}
    (await models.prepare(Settings.model_validate(given)))()
    assert [route.provider for route in entry.routes] == ["p", "q"]
    assert [card.name for card in models.cards(ANONYMOUS)] == ["slow"]
    with pytest.raises(ModelNotFound):
        models.find("fast", ANONYMOUS, "chat")


async def test_an_entry_is_made_once_for_a_name_and_anew_for_a_pattern_and_after_a_reload() -> None:
    models = catalogue(**{"fast": FAST, "team/*": [{"provider": "p"}]})
    first = models.find("fast", ANONYMOUS, "chat")
    assert models.find("fast", ANONYMOUS, "embeddings") is first
    assert models.find("team/a", ANONYMOUS, "chat").routes == (Route("p", "team/a"),)
    assert models.find("team/b", ANONYMOUS, "chat").routes == (Route("p", "team/b"),)
    changed = {
        "providers": {"p": {"kind": "openai", "keys": ["k"]}},
        "models": {"fast": {"routes": [{"provider": "p"}]}},
    }
    (await models.prepare(Settings.model_validate(changed)))()
    assert models.find("fast", ANONYMOUS, "chat").routes == (Route("p", "fast"),)
