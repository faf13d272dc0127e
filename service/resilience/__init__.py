"""Backing off, budgets and circuit breakers: knows failures and time, neither models nor HTTP; all of it in memory."""
