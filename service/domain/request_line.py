"""What the log's line on a request tells of the generation in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestLine:
    """Collects fields until the line is written; what comes later needs a line of its own."""

    fields: dict[str, object] = field(default_factory=dict)
    is_written: bool = False

    def add(self, fields: Mapping[str, object]) -> bool:
        """Take fields, if it is not too late."""
        if self.is_written or self.fields:
            return False
        self.fields.update(fields)
        return True

    def written(self) -> Mapping[str, object]:
        """Return the fields, to be written now."""
        self.is_written = True
        return self.fields
