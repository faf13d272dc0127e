"""streaq: tasks on Redis Streams, whose leases live workers renew."""

from tests.jobs.candidates.other_package import OtherPackage


class Streaq(OtherPackage):
    """The candidate, with the shortest lease that its renewal leaves room for."""

    def __init__(self, *, drain_s: float) -> None:
        super().__init__("streaq 7.2.0", "streaq_program.py", ["streaq==7.2.0", "httpx>=0.28"], drain_s=drain_s)
