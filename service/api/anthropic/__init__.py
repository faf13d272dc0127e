"""Anthropic's API under ``/v1``: bodies, errors and streams as the ``anthropic`` SDK has them; routes in routes.py."""
