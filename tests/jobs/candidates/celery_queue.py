"""Celery on Redis, with what its documentation recommends against lost workers."""

from tests.jobs.candidates.other_package import OtherPackage


class Celery(OtherPackage):
    """The candidate: late acknowledgement, no prefetching, and a visibility timeout that fits the promise."""

    def __init__(self, *, drain_s: float) -> None:
        super().__init__("Celery 5.7.0", "celery_program.py", ["celery[redis]==5.7.0"], drain_s=drain_s)
