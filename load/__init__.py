"""Load tests that tell the truth: open-loop arrivals, latency from the intended send time, a gate on the generator."""
