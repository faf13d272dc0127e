"""OpenAI's API under ``/v1``: bodies, errors and streams as the ``openai`` SDK has them; routes in routes.py."""
