"""What metrics tell of several things at once."""

import pytest
from prometheus_client import CollectorRegistry

from service.telemetry.metrics import KeyFiles, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def files_ok(metrics: Metrics, what: KeyFiles) -> float | None:
    return metrics.registry.get_sample_value("llm_api_key_file_ok", {"what": what})


def test_files_of_keys_are_in_use_until_one_is_not(metrics: Metrics) -> None:
    assert (files_ok(metrics, "client_keys"), files_ok(metrics, "provider_keys")) == (1, 1)
    metrics.note_key_file("provider_keys", "openai", False)  # noqa: FBT003 - a callback has no names
    assert (files_ok(metrics, "client_keys"), files_ok(metrics, "provider_keys")) == (1, 0)


def test_one_good_file_does_not_hide_a_bad_one(metrics: Metrics) -> None:
    metrics.note_key_file("provider_keys", "openai", False)  # noqa: FBT003
    metrics.note_key_file("provider_keys", "anthropic", True)  # noqa: FBT003
    assert files_ok(metrics, "provider_keys") == 0
    metrics.note_key_file("provider_keys", "openai", True)  # noqa: FBT003
    assert files_ok(metrics, "provider_keys") == 1
