"""Deciding who is let in: limits kept in one process's memory, in the shared store, or in memory while that is away."""
