"""What outlives a request: in Redis, or in the memory of one process."""
