"""What a run of load came to, as a page, as pictures and as JSON."""
