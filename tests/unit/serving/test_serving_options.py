"""What uvicorn and gunicorn are told."""

import pytest

from service.config import Settings
from service.engine.drain import CLEAN_UP_S
from service.serving.options import longest_worker_stop_s
from service.shutdown import BACKSTOP_S


@pytest.mark.parametrize(("delay_s", "timeout_s", "jobs_s"), [(0, 1, 1), (10, 180, 30), (2.5, 0.25, 7)])
def test_gunicorn_kills_no_worker_before_every_step_of_its_stop_can_be_over(
    delay_s: float, timeout_s: float, jobs_s: float
) -> None:
    settings = Settings.model_validate(
        {"drain": {"delay_s": delay_s, "timeout_s": timeout_s}, "jobs": {"drain_s": jobs_s}}
    )
    steps_s = (delay_s, timeout_s, CLEAN_UP_S, BACKSTOP_S, CLEAN_UP_S, jobs_s)
    assert sum(steps_s) < longest_worker_stop_s(settings) < sum(steps_s) + 10
