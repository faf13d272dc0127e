"""Throughput with two workers against one: what the machine shows, and what the cost of a request says."""

from collections.abc import Callable, Mapping

from load.bench import measure
from load.bench.figures import Figure, figure
from load.bench.measure import Rig
from load.bench.peers import MissingError
from load.bench.targets import BY_NAME, Place
from load.bench.windows import invalidity

SECONDS = 3.0


def scaling(rig: Rig, place: Callable[[int], Place], note: Callable[[str], None]) -> Mapping[str, Figure]:
    """Load one worker and two workers, none of them bound to a core.

    With fewer than two cores beside the rig's, the throughput of two is that of the machine; what two workers could do
    is told by the CPU time of a request, which must not grow: twice the cost with one by the cost with two. Several
    workers need a store.
    """
    target = BY_NAME["llm-api-redis"]
    rates, costs = [], []
    for count in (1, 2):
        try:
            with target.start(place(count)) as live:
                measure.warm_up(rig, live)
                window = measure.plain(rig, target, live, SECONDS)
        except MissingError as error:
            note(f"not measured: {count} workers: {error}")
            return {}
        if (reason := invalidity(window)) is not None:
            note(f"discarded: {count} workers: {reason}")
            return {}
        rates.append(window.requests / window.seconds)
        costs.append(window.us_per_request)
    note(f"{rates[0]:.0f} requests/s with one worker, {rates[1]:.0f} with two, rig and targets on the same cores")
    return {"workers_ratio": figure([rates[1] / rates[0]]), "workers_ratio_by_cost": figure([2 * costs[0] / costs[1]])}
