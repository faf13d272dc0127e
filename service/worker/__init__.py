"""The loop that works on background jobs."""
