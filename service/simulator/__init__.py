"""The simulated upstream: deterministic, OpenAI- and Anthropic-compatible, and it keeps an invoice.

A program of its own, which knows nothing of the rest of the service.
"""
