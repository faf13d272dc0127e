"""What the service is held to: each claim is a bound on a figure, alone or against another target in the same run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from load.bench.targets import OWN

Figures = Mapping[str, Mapping[str, float]]
"""Target → name of a figure → its value."""


@dataclass(frozen=True, slots=True)
class Claim:
    """``mine`` is at most ``factor`` times the other's, plus ``plus``."""

    mine: str
    """Name of the figure."""
    factor: float = 0.0
    other: str = ""
    """The target against which it is held; none, and ``plus`` is the bound."""
    plus: float = 0.0
    target: str = OWN
    theirs: str = ""
    """Name of the other's figure; the same when left out."""

    def text(self) -> str:
        """Say what is claimed."""
        if not self.other:
            return f"{self.target} {self.mine} ≤ {self.plus:g}"
        more = f" + {self.plus:g}" if self.plus else ""
        theirs = self.theirs or self.mine
        return f"{self.target} {self.mine} ≤ {self.factor:.3g} x {self.other} {theirs}{more}"

    def judge(self, figures: Figures) -> "Verdict":
        """Hold the figures to it."""
        value = figures.get(self.target, {}).get(self.mine)
        against = figures.get(self.other, {}).get(self.theirs or self.mine) if self.other else 0.0
        if value is None or against is None:
            return Verdict(self, None, None)
        return Verdict(self, value, self.factor * against + self.plus)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a claim: without a bound it could not be judged, for something was not measured."""

    claim: Claim
    value: float | None
    bound: float | None

    @property
    def held(self) -> bool | None:
        """Whether the claim holds; None where that is not known."""
        return None if self.value is None or self.bound is None else self.value <= self.bound

    def text(self) -> str:
        """Say it in a line."""
        if self.value is None or self.bound is None:
            return f"NOT MEASURED  {self.claim.text()}"
        word = "held" if self.held else "MISSED"
        return f"{word:<12}  {self.claim.text()}: {self.value:.4g} against {self.bound:.4g}"


CLAIMS = (
    Claim("plain_us", 1 / 30, "litellm"),
    Claim("plain_us", 1 / 7, "portkey"),
    Claim("plain_us", 1.6, "sglang-router"),
    Claim("paced_chunk_us", 1 / 12, "litellm"),
    Claim("paced_chunk_us", 1 / 2.5, "portkey"),
    Claim("paced_chunk_us", 1, "sglang-router"),
    Claim("burst_chunk_us", plus=8),
    Claim("burst_fixed_us", plus=450),
    Claim("generate_us", 1.3, OWN, theirs="plain_us"),
    Claim("chat_us", 1.3, OWN, theirs="plain_us"),
    Claim("plain_us", 1, OWN, plus=150, target="llm-api-redis"),
    Claim("idle_2000_kib", plus=25),
    Claim("closed_after_s", plus=0.5),
    Claim("added_first_p50_ms", plus=3),
    Claim("added_first_p99_ms", plus=15),
    Claim("import_s", plus=2),
    Claim("first_answer_s", plus=2),
    Claim("start_mib", plus=150),
)
"""The fixed cost of a stream is held in a burst: of paced streams it is the small difference of two large figures."""


def judge(figures: Figures, claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """Hold the figures to all claims."""
    return [claim.judge(figures) for claim in claims]


def exit_status(verdicts: Sequence[Verdict]) -> int:
    """Return 1 where a claim is missed, 3 where none is but not all could be judged, else 0."""
    if any(verdict.held is False for verdict in verdicts):
        return 1
    return 3 if any(verdict.held is None for verdict in verdicts) else 0
