"""The page at `/`, as static files (HTML, CSS, ES modules). No Python lives here; nothing is built or fetched."""
