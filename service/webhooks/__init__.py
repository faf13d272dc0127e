"""Telling callers' servers how their jobs ended, by the Standard Webhooks specification."""
