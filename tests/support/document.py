"""The examples of a document, as its readers copy them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
ADDRESS = "http://127.0.0.1:8000"
"""Where the documents think that the service is."""


def examples(document: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    text = (DOCS / document).read_text("utf-8")
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", text)
