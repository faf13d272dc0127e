"""The Dockerfile: what can be said of it without building it."""

import re

from service import __version__
from tests.chart.rendering import ROOT

NEEDS = ()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BUILD, RUN = DOCKERFILE.split("\nFROM ${PYTHON_IMAGE}\n")


def test_both_stages_have_the_base_that_the_builder_names() -> None:
    assert "ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim\n" in BUILD
    assert re.findall(r"^FROM (.+)$", DOCKERFILE, re.MULTILINE) == ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"]


def test_what_runs_was_only_copied() -> None:
    instructions = re.findall(r"^([A-Z]+) ", RUN, re.MULTILINE)
    assert "RUN" not in instructions
    assert instructions.count("COPY") == 1


def test_it_runs_as_a_number_that_is_not_root() -> None:
    assert re.search(r"^USER 65532:65532$", RUN, re.MULTILINE)


def test_signals_reach_the_process_itself() -> None:
    assert 'ENTRYPOINT ["llm-api"]\nCMD ["serve"]' in RUN


def test_its_version_is_ours() -> None:
    assert f"ARG VERSION={__version__}\n" in RUN


def test_only_what_it_is_made_of_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    copied = {name for line in re.findall(r"^COPY (?!--)(.+)$", BUILD, re.MULTILINE) for name in line.split()[:-1]}
    assert {name.split("/")[0] for name in copied} == {line[1:] for line in lines if line.startswith("!")}
