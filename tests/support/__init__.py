"""What the tests share: servers to speak to, and readers that we did not write."""
