"""The tree of errors and its table for callers say the same."""

import re
from collections.abc import Iterator
from pathlib import Path

from service.errors import ServiceError, UpstreamMisconfigured, mildest

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"


def _classes(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == "service.errors":
            yield from _classes(child)


def test_codes_are_unique_but_for_the_root() -> None:
    codes = [error.code for error in _classes() if error is not ServiceError]
    assert len(codes) == len(set(codes))


def test_every_code_is_documented_with_its_status() -> None:
    rows = re.findall(r'^\| <a id="\w+"></a>`(\w+)` \| (\d+) \| (yes|no) \|', DOCS.read_text(), re.MULTILINE)
    documented = {code: (int(status), retryable == "yes") for code, status, retryable in rows}
    assert documented == {error.code: (error.status, error.retryable) for error in _classes()}


def test_an_error_at_a_field_names_it() -> None:
    error = next(kind for kind in _classes() if kind.code == "model_not_found").at("model", "no such")  # type: ignore[attr-defined]
    assert error.message == "model: no such"
    assert [(fault.field, fault.message) for fault in error.fields] == [("model", "no such")]


def test_the_mildest_refusal_is_the_first_for_lack_of_funds_else_the_first() -> None:
    wrong, other, broke, poor = (
        UpstreamMisconfigured("", refused=refused) for refused in ("key", "key", "funds", "funds")
    )
    assert mildest([wrong, broke, poor]) is broke
    assert mildest([other, wrong]) is other
