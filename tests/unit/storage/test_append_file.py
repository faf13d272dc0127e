"""What is appended to a file of lines is there as a whole, or not at all."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.storage import append_file
from service.storage.append_file import AppendFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "lines"


@pytest.fixture
def file(path: Path, now: list[float]) -> Iterator[AppendFile]:
    made = AppendFile(path, now=lambda: now[0])
    yield made
    made.close()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


def writes(monkeypatch: pytest.MonkeyPatch, write: Callable[[int, bytes], int]) -> None:
    monkeypatch.setattr(append_file, "_write", write)


def test_a_write_that_takes_a_part_goes_on(file: AppendFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes(monkeypatch, lambda fd, data: os.write(fd, data[:3]))
    file.append(b"first line\n")
    file.append(b"second\n")
    assert path.read_bytes() == b"first line\nsecond\n"


def test_what_cannot_be_written_whole_leaves_no_part_behind(
    file: AppendFile, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.append(b"first\n")
    with monkeypatch.context() as patch:
        room = [4]

        def until_full(fd: int, data: bytes) -> int:
            if not room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return os.write(fd, data[: room.pop()])

        writes(patch, until_full)
        with pytest.raises(OSError, match="No space"):
            file.append(b"second\n")
    assert path.read_bytes() == b"first\n"
    file.append(b"second\n")
    assert path.read_bytes() == b"first\nsecond\n"


def test_a_line_that_another_process_did_not_finish_spoils_none_of_ours(file: AppendFile, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"first\nsec")
    file.append(b"third\n")
    assert path.read_bytes() == b"first\nsec\nthird\n"


@pytest.mark.parametrize("take_away", [lambda path: path.unlink(), lambda path: path.rename(path.parent / "old")])
def test_a_file_that_was_taken_away_is_made_anew_within_a_second(
    file: AppendFile, path: Path, now: list[float], take_away: Callable[[Path], object]
) -> None:
    file.append(b"first\n")
    take_away(path)
    now[0] += 1.0
    file.append(b"second\n")
    assert path.read_bytes() == b"second\n"


def test_the_file_is_opened_once(file: AppendFile, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.append(b"first\n")

    def refuse(*_: object) -> int:
        raise AssertionError("opened again")

    monkeypatch.setattr(append_file, "_open", refuse)
    file.append(b"second\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_is_no_link_to_another(file: AppendFile, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        file.append(b"first\n")
    assert not (tmp_path / "other").exists()


def test_what_is_cleared_is_gone(file: AppendFile, path: Path) -> None:
    file.append(b"first\n")
    assert file.size == 6
    file.clear()
    assert (file.size, path.read_bytes()) == (0, b"")
    file.append(b"second\n")
    assert path.read_bytes() == b"second\n"
