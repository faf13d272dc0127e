"""CPU time and memory of a process and all its descendants, from ``/proc`` (proc(5)); Linux only."""

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")
STOP_TIMEOUT_S = 15


@dataclass(frozen=True, slots=True)
class Stat:
    """What ``/proc/PID/stat`` says of one process."""

    parent: int
    cpu_ticks: int
    """User and system time, its own and that of children it has waited for, in clock ticks."""


def parse_stat(text: str) -> Stat:
    """Read a line of ``/proc/PID/stat``; the name in it may hold blanks and parentheses."""
    fields = text.rpartition(")")[2].split()
    # Counted from the state: ppid is the 2nd, utime, stime, cutime and cstime are the 12th to 15th.
    return Stat(parent=int(fields[1]), cpu_ticks=sum(int(field) for field in fields[11:15]))


def tree_of(root: int, parents: Mapping[int, int]) -> set[int]:
    """Return a process and its descendants, from who is whose parent."""
    found = {root}
    children = {root}
    while children:
        children = {pid for pid, parent in parents.items() if parent in children} - found
        found |= children
    return found


def descendants(root: int) -> set[int]:
    """Return the processes that a process has started, and those that they have."""
    return tree_of(root, {pid: stat.parent for pid, stat in _stats()}) - {root}


def cpu_s(root: int) -> float:
    """Return the CPU time of a process tree so far, in seconds, exact to a tick (10 ms) for each process."""
    stats = dict(_stats())
    tree = tree_of(root, {pid: stat.parent for pid, stat in stats.items()})
    return sum(stats[pid].cpu_ticks for pid in tree if pid in stats) / TICKS_PER_S


def pss_bytes(root: int) -> int:
    """Return the proportional set size of a process tree: what is shared counts in parts."""
    parents = {pid: stat.parent for pid, stat in _stats()}
    return sum(_rollup_bytes(pid, "Pss:") for pid in tree_of(root, parents))


def parse_rollup(lines: Iterable[str], label: str) -> int:
    """Read a field of ``/proc/PID/smaps_rollup``, in bytes."""
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(label))


def _rollup_bytes(pid: int, label: str) -> int:
    try:
        return parse_rollup((PROC / str(pid) / "smaps_rollup").read_text().splitlines(), label)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _stats() -> Iterator[tuple[int, Stat]]:
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), parse_stat((folder / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile


@contextmanager
def pinned(cores: Iterable[int] | None) -> Iterator[None]:
    """Let what is started within the block run on these cores alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if cores is None else set(cores) & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    cores: Iterable[int] | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program until the block ends, with all that it says in a file."""
    with log.open("wb") as output, pinned(cores):
        process = subprocess.Popen(  # noqa: S603 - commands of our own
            list(command), stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, cwd=folder
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
