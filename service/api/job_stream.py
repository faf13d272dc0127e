"""The event stream of a background job: where it stands, its text as it grows, and how it ended."""

import orjson

from service.api.errors import problem
from service.api.sse import DONE, json_event, text_event
from service.domain.job import Job, JobStatus
from service.domain.limits import decimal_usd
from service.errors import Cancelled, JobGone, ServiceError


class JobFraming:
    """Frames the states of one job; see :class:`service.engine.framing.Framing`.

    ``event: status`` tells where it stands, unnamed events carry text, and ``event: restart`` says that the text begins
    again, since the process that worked on it died. The end is that of every stream of ours; ``job_over`` in an error
    tells how the job ended from why it is followed no further.
    """

    def __init__(self, *, request_id: str) -> None:
        self._request_id = request_id
        self._status = b""
        self._text = ""

    def chunk(self, job: Job) -> bytes:
        """Frame what is new."""
        frames = b""
        state = {"job_id": job.id, "state": job.status, "position": job.position, "attempts": job.attempts}
        status = json_event("status", state)
        if status != self._status:
            self._status = status
            frames += status
        if job.status is JobStatus.COMPLETE and job.answer is not None:
            answer = orjson.loads(job.answer)
            frames += self._more(answer.pop("text"))
            cost_usd = None if job.cost_nano_usd is None else decimal_usd(job.cost_nano_usd)
            return frames + json_event("usage", {**answer, "cost_usd": cost_usd}) + DONE
        if job.error is not None:
            fault = {"code": job.error.code, "detail": job.error.detail, "retryable": job.error.retryable}
            return frames + json_event(
                "error", {**fault, "job_id": job.id, "request_id": self._request_id, "job_over": True}
            )
        if job.status is JobStatus.CANCELLED:
            cancelled = problem(Cancelled("the job was cancelled"), self._request_id)
            return frames + json_event("error", {**cancelled, "job_over": True})
        return frames + (self._more(job.progress) if job.progress else b"")

    def end(self) -> bytes:
        """Frame nothing more: the last state told the end."""
        return b""

    def failure(self, error: ServiceError) -> bytes:
        """Frame why the following ends; the job may go on."""
        return json_event("error", {**problem(error, self._request_id), "job_over": isinstance(error, JobGone)})

    def _more(self, text: str) -> bytes:
        frames = b""
        if not text.startswith(self._text):
            frames, self._text = json_event("restart", {}), ""
        new, self._text = text[len(self._text) :], text
        return frames + text_event(new)
