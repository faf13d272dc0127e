"""Whose turn it is at a provider, and how many calls may run there at once."""
