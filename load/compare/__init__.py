"""Two runs of one scenario: what differs, and whether that is more than noise."""
