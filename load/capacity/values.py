"""The plan as a file of the chart's values, each with its reason."""

from load.capacity.plan import (
    CPU_PERCENT,
    MEMORY_LIMIT,
    MEMORY_SPARE,
    MIB,
    PODS_SPARE,
    STREAM_MIN_S,
    STREAM_SPARE,
    Plan,
)
from load.capacity.pod import Observed
from load.capacity.search import Bound

BOUNDS: dict[Bound, str] = {
    "objectives": "above it, objectives of the scenario were missed",
    "generator": "a lower bound: above it the generator lagged, and such runs are invalid and count for nothing",
    "rate_max": "a lower bound: it is --rate-max, the highest that was tried",
    "steps": "a lower bound: --steps runs were made before the search was through",
    "nothing_held": "there is none",
}


def values_file(
    plan: Plan,
    at_knee: Observed,
    *,
    knee_per_s: float,
    bound: Bound,
    fraction: float,
    longest_stream_s: float,
    check: str,
) -> str:
    """Return the text of the file; ``check`` says what a run at the target came to."""
    return f"""\
# Made by `python -m load.capacity`. Lay it over your own: helm upgrade … -f yours.yaml -f this.yaml
# Knee of one pod: {knee_per_s:.4g} requests/s ({BOUNDS[bound]}).
# Planned for {plan.target_per_s:.4g} requests/s a pod, {fraction:.2f} of the knee.
# The rest carries what comes until a new pod is ready.
# {check}
autoscaling:
  enabled: true
{_pods(plan)}\
  # {at_knee.streams:.1f} streams were open on average at the knee.
  # {_share(fraction, plan.streams_per_pod)}
  streamsPerPod: {plan.streams_per_pod}
  # {at_knee.requests:.1f} requests were in flight on average at the knee, streams included.
  # {_share(fraction, plan.requests_per_pod)}
  # Requests that wait for a provider's quota are in flight too: against that, more pods do not help.
  requestsPerPod: {plan.requests_per_pod}
  # Of what is requested below, which is what the knee took: CPU asks for pods only if the two above do not.
  cpuPercent: {CPU_PERCENT}
resources:
  requests:
    # {at_knee.cores:.3f} cores at the knee, rounded up. No limit: throttling would stop all streams of the pod at once.
    cpu: {plan.cpu_m}m
    # {at_knee.memory_bytes / MIB:.0f} MiB at most at the knee, times {MEMORY_SPARE}.
    memory: {plan.memory_request_mi}Mi
  limits:
    # The same, times {MEMORY_LIMIT:g}: what is above it is killed, with all of its streams.
    memory: {plan.memory_limit_mi}Mi
# The longest answer of the load took {longest_stream_s:.1f} s; times {STREAM_SPARE}, and no less than {STREAM_MIN_S} s.
# Raise it if your models may take longer.
# terminationGracePeriodSeconds follows from it: this, preStopSeconds, delaySeconds, config.jobs.drain_s and 30 s.
longestStreamSeconds: {plan.longest_stream_s}
"""


def _pods(plan: Plan) -> str:
    if plan.pods_max is None:
        return ""
    return f"""\
  # The planned rate over that of a pod, times {PODS_SPARE}.
  maxReplicas: {plan.pods_max}
"""


def _share(fraction: float, target: int) -> str:
    said = f"The target is {fraction:.2f} of them"
    return f"{said}." if target else f"{said}, which is less than one: 0 leaves this metric out."
