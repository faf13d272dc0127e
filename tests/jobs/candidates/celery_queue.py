"""Celery on Redis, with what its documentation recommends against lost workers."""

from tests.jobs.candidates.other_package import OtherPackage


class Celery(OtherPackage):
    """The candidate: late acknowledgement, no prefetching, and the shortest visibility timeout that a job fits in."""

    def __init__(self) -> None:
        super().__init__("Celery 5.7.0", "celery_program.py", ["celery[redis]==5.7.0"])
