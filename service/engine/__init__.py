"""The use cases: generating, background jobs, readiness."""
