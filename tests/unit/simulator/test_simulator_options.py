"""The simulator's command line."""

import argparse

import pytest

from service.simulator.options import add_arguments, from_arguments


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_arguments(made)
    return made


@pytest.mark.parametrize("port", [0, 1, 65_535])
def test_port_is_taken_within_its_range(port: int) -> None:
    assert from_arguments(parser().parse_args(["--port", str(port)])).port == port


@pytest.mark.parametrize("port", ["70000", "65536", "-1", "eighty", ""])
def test_port_out_of_its_range_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args([f"--port={port}"])
    assert caught.value.code == 2
    assert f"takes a number from 0 to 65535, not {port!r}" in capsys.readouterr().err
