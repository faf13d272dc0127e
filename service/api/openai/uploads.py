"""Reading a multipart upload as it comes: the file's lines go on, and nothing of it is kept whole."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidRequest

FIELD_BYTES_MAX = 1_024
"""Of every part but the file."""
HEADER_BYTES_MAX = 4_096
"""Of one header of a part."""
PARTS_MAX = 8


@dataclass(slots=True)
class _Part:
    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Header:
    """A header of a part. Both come in pieces, as the body does."""

    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)


class Upload:
    """A multipart body with one part that is a file, and small fields, in whatever order they come."""

    def __init__(self, request: Request, *, line_bytes_max: int) -> None:
        """Raise ``InvalidRequest`` where the body is none."""
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise InvalidRequest.at("file", "takes a body of multipart/form-data with the fields file and purpose")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """Of the file, once it has begun."""
        self._request = request
        self._line_bytes_max = line_bytes_max
        self._parts = 0
        self._part = _Part()
        self._header = _Header()
        self._rest = bytearray()
        """Of the file: what is no whole line yet."""
        self._lines: list[bytes] = []
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                },
            )
        except FormParserError as error:
            raise _broken(error) from None

    async def lines(self) -> AsyncIterator[bytes]:
        """Give the file's lines, without their ends; raise ``InvalidRequest`` where the body is not as it should be."""
        try:
            async for piece in self._request.stream():
                if piece:
                    self._parser.write(piece)
                for line in self._taken():
                    yield line
            self._parser.finalize()
        except FormParserError as error:
            raise _broken(error) from None
        for line in self._taken():
            yield line
        if self.filename is None:
            raise InvalidRequest.at("file", "is missing", kind="missing")

    def _taken(self) -> list[bytes]:
        lines, self._lines = self._lines, []
        return lines

    def _on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise InvalidRequest.at("file", f"comes with more than {PARTS_MAX - 1} other fields")
        self._part = _Part()
        self._header = _Header()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header.name += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header.value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header.name) + len(self._header.value) > HEADER_BYTES_MAX:
            raise InvalidRequest.at("file", f"the multipart body has a header of more than {HEADER_BYTES_MAX} bytes")

    def _on_header_end(self) -> None:
        header, self._header = self._header, _Header()
        if header.name.lower() != b"content-disposition":
            return
        _, options = parse_options_header(bytes(header.value))
        self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._part.name == "file":
            if self.filename is not None:
                raise InvalidRequest.at("file", "comes twice")
            self._part.filename = options.get(b"filename", b"").decode("utf-8", "replace")
            self.filename = self._part.filename

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.filename is None:
            self._part.value += data[start:end]
            if len(self._part.value) > FIELD_BYTES_MAX:
                raise InvalidRequest.at(self._part.name or "body", f"is longer than {FIELD_BYTES_MAX} bytes")
            return
        *lines, rest = data[start:end].split(b"\n")
        for line in lines:
            self._rest += line
            self._check_line()
            self._lines.append(bytes(self._rest.rstrip(b"\r")))
            self._rest.clear()
        self._rest += rest
        self._check_line()

    def _check_line(self) -> None:
        if len(self._rest) > self._line_bytes_max:
            raise InvalidRequest.at("file", f"has a line of more than {self._line_bytes_max} bytes")

    def _on_part_end(self) -> None:
        if self._part.filename is None:
            self.fields[self._part.name] = self._part.value.decode("utf-8", "replace")
        elif self._rest:
            self._lines.append(bytes(self._rest))
            self._rest.clear()


def _broken(error: FormParserError) -> InvalidRequest:
    return InvalidRequest.at("file", f"the multipart body is broken: {error}")
