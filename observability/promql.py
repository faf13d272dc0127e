"""Pieces of queries that rules and dashboards share."""

BAD = "us|provider|capacity"
"""Faults that count against the objectives; what is the caller's does not."""
GENERATES = 'family!~"other|polls"'
"""Requests for something to be generated. Who polls does so at a rate of its own, and would outweigh them."""
POLLS = 'family="polls"'
"""Requests that ask how a background job or batch is."""
FAILED = "upstream_unavailable|upstream_timeout|upstream_invalid_response|upstream_overloaded"
"""Outcomes of calls to a provider that is not well."""
JUDGED = "cancelled|invalid_request|upstream_rejected|deadline_passed"
"""Outcomes that say nothing of a provider."""


def boundary(seconds: float) -> str:
    """Return a bucket's boundary as the label ``le`` has it."""
    return repr(float(seconds))


def summed(function: str, metric: str, labels: str, window: str, *by: str) -> str:
    """Sum what ``rate`` or ``increase`` give of a counter, for each namespace and what else is named."""
    return f"sum by ({', '.join(('namespace', *by))}) ({function}({metric}{{{labels}}}[{window}]))"


def share(part: str, whole: str) -> str:
    """Divide; where there is nothing to divide by there is no answer, which a NaN would be."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, metric: str, labels: str, window: str, *by: str) -> str:
    """Estimate a quantile of a histogram, for each namespace and what else is named."""
    return f"histogram_quantile({q:g}, {summed('rate', f'{metric}_bucket', labels, window, *by, 'le')})"
