"""What the service costs beside nginx and its peers: CPU time, memory, latency; see docs/performance.md."""
