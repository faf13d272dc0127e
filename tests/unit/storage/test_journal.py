"""Whose a journal is: the file of a process that lives is left to it, and a stranger's is not believed."""

import fcntl
import os
from pathlib import Path

import pytest

from service.storage.journal import FileJournal
from tests.support.usage_records import batch, record


def test_nobody_takes_over_a_journal_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = FileJournal(tmp_path, "ours"), FileJournal(tmp_path, "other")
    found: list[object] = []
    lock = fcntl.flock

    def look_first(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        found.append(other.left_behind())
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", look_first)
    one, two = batch("ours", 1, ("record", record())), batch("ours", 2, ("record", record()))
    ours.append(one)
    ours.append(two)
    assert found == [None]
    ours.release()
    left = other.left_behind()
    assert left is not None
    assert left.first(1) == one
    left.drop_first()
    assert left.first(1) == two
    assert [path.name for path in tmp_path.iterdir()] == ["ours.journal"]


def test_a_journal_of_another_user_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_by(tmp_path, "gone")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert FileJournal(tmp_path, "ours").left_behind() is None
    assert (tmp_path / "gone.journal").exists()
    monkeypatch.undo()
    assert FileJournal(tmp_path, "ours").left_behind() is not None


def test_a_link_is_no_journal(tmp_path: Path) -> None:
    left_by(tmp_path / "elsewhere", "gone")
    (tmp_path / "link.journal").symlink_to(tmp_path / "elsewhere" / "gone.journal")
    assert FileJournal(tmp_path, "ours").left_behind() is None


def test_only_its_user_reads_a_journal(tmp_path: Path) -> None:
    left_by(tmp_path / "folder", "gone")
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "folder" / "gone.journal").stat().st_mode & 0o777 == 0o600


def left_by(folder: Path, owner: str) -> None:
    journal = FileJournal(folder, owner)
    journal.append(batch(owner, 1, ("record", record())))
    journal.release()
