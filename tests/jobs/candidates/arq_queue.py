"""arq, which the seed of this project named: jobs in a sorted set, retried when their lock has run out."""

from tests.jobs.candidates.other_package import OtherPackage


class Arq(OtherPackage):
    """The candidate, with the longest job timeout that leaves a re-run in time."""

    def __init__(self, *, drain_s: float) -> None:
        super().__init__("arq 0.28.0", "arq_program.py", ["arq==0.28.0", "httpx>=0.28"], drain_s=drain_s)
