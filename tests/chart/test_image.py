"""The Dockerfile: what can be said of it without building it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from service import __version__
from tests.chart.rendering import ROOT

NEEDS = ()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
_, BUILD, BUILD_LOAD, LOAD, RUN = re.split(r"^FROM .+\n", DOCKERFILE, flags=re.MULTILINE)
BUILDS = pytest.mark.parametrize("build", [BUILD, BUILD_LOAD], ids=["service", "load"])
IMAGES = pytest.mark.parametrize("image", [RUN, LOAD], ids=["service", "load"])


def test_every_stage_has_the_base_that_the_builder_names_and_the_service_is_the_last() -> None:
    assert "ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim\n" in DOCKERFILE
    stages = [f"${{PYTHON_IMAGE}}{name}" for name in (" AS build", " AS build-load", " AS load", " AS service")]
    assert re.findall(r"^FROM (.+)$", DOCKERFILE, re.MULTILINE) == stages


def test_what_serves_has_no_locust_in_it() -> None:
    assert "load" not in re.sub(r"#.*", "", BUILD) + re.sub(r"#.*", "", RUN)
    assert "--extra load " in BUILD_LOAD
    assert "COPY --from=build /result /\n" in RUN
    assert "COPY --from=build-load /result /\n" in LOAD
    assert 'ENTRYPOINT ["locust", "--locustfile", "/app/load/locustfile.py"]' in LOAD


@BUILDS
def test_the_same_sources_make_the_same_bytes(build: str) -> None:
    """A time in a .pyc, or of a file, would make another layer of each build."""
    assert re.search(r"PYC_INVALIDATION_MODE=CHECKED_HASH\b", build)
    *_, last = re.findall(r"^RUN (.+(?:\n    .+)*)", build, re.MULTILINE)
    steps = [step.strip(" \\\n") for step in last.split("&&")]
    assert [step.split()[0] for step in steps[-4:]] == ["rm", "mkdir", "mv", "find"]
    assert steps[-1] == 'find /result -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +'
    assert "ARG SOURCE_DATE_EPOCH=0\n" in build


def test_nothing_that_a_build_notes_for_itself_is_in_the_image() -> None:
    *_, last = re.findall(r"^RUN (.+(?:\n    .+)*)", BUILD, re.MULTILINE)
    steps = [step.strip(" \\\n") for step in last.split("&&")]
    assert [step.split()[0] for step in steps[:-4]] == ["sed", "rm"]
    assert "--invalidation-mode checked-hash load" in BUILD_LOAD


def test_the_bytecode_that_uv_compiles_is_checked_by_hash(tmp_path: Path) -> None:
    """In what the Dockerfile sets, as uv understands it: of a misspelt mode it makes an error, of none a time."""
    if (uv := shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")) is None:
        pytest.skip("there is no uv")
    environment = {**os.environ, **dict(re.findall(r"(PYC_\w+|UV_COMPILE_BYTECODE)=(\w+)", BUILD))}
    site = tmp_path / "site"
    wheel(tmp_path / "one-1-py3-none-any.whl")
    command = [uv, "pip", "install", "--offline", "--no-cache", "--python", sys.executable, "--target", str(site)]
    subprocess.run([*command, str(tmp_path / "one-1-py3-none-any.whl")], env=environment, timeout=120, check=True)
    (compiled,) = site.rglob("one.*.pyc")
    # PEP 552: bit 0, a hash in place of a time; bit 1, which is compared with that of the source.
    assert int.from_bytes(compiled.read_bytes()[4:8], "little") == 0b11


def wheel(path: Path) -> None:
    """Write the smallest package with a module in it."""
    about = {"METADATA": "Metadata-Version: 2.1\nName: one\nVersion: 1\n", "RECORD": ""}
    about["WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.py", "")
        for name, text in about.items():
            archive.writestr(f"one-1.dist-info/{name}", text)


@IMAGES
def test_what_runs_was_only_copied(image: str) -> None:
    instructions = re.findall(r"^([A-Z]+) ", image, re.MULTILINE)
    assert "RUN" not in instructions
    assert instructions.count("COPY") == 1


@IMAGES
def test_it_runs_as_a_number_that_is_not_root(image: str) -> None:
    assert re.search(r"^USER 65532:65532$", image, re.MULTILINE)


def test_signals_reach_the_process_itself() -> None:
    assert 'ENTRYPOINT ["llm-api"]\nCMD ["serve"]' in RUN


@IMAGES
def test_its_version_is_ours(image: str) -> None:
    assert f"ARG VERSION={__version__}\n" in image


def test_only_what_it_is_made_of_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    copies = re.findall(r"^COPY (?!--)(.+)$", BUILD + BUILD_LOAD, re.MULTILINE)
    copied = {name for line in copies for name in line.split()[:-1]}
    assert {name.split("/")[0] for name in copied} == {line[1:] for line in lines if line.startswith("!")}
