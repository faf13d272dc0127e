"""What the service talks about, in its own words: frozen dataclasses that know no vendor, no HTTP and no store."""
