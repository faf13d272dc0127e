"""Dashboards, recording rules and alerts of llm-api, as code: ``python -m observability`` writes what operators load.

It knows the names in ``service.telemetry.metrics``; the service knows nothing of it.
"""
