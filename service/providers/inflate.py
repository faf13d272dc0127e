"""Undoing the compression of an answer, in bounded steps; knows nothing of what the answer says."""

import zlib

ZLIB_OR_GZIP = 47
"""The window size by which zlib tells its own format and gzip apart (zlib manual, ``inflateInit2``)."""
STEP_BYTES = 1024 * 1024
"""The most that one step makes of what came: a megabyte of zeros is a kilobyte when it is compressed."""
GZIP_MAGIC = b"\x1f\x8b"
"""A body may be several gzip members in a row (RFC 1952 §2.2)."""
CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
"""What can be undone (RFC 9110 §8.4.1)."""


class Inflater:
    """Turns the bytes of one compressed body into those of the body. Raises ``zlib.error`` for what is none."""

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(ZLIB_OR_GZIP)

    @property
    def owes(self) -> bool:
        """Whether another step makes more of what came already."""
        return bool(self._stream.unconsumed_tail) or self._has_next_member

    @property
    def ended(self) -> bool:
        """Whether the end of the compressed data has come."""
        return self._stream.eof

    def step(self, data: bytes = b"") -> bytes:
        """Take more, and return at most ``STEP_BYTES``; nothing where what came is not enough for any."""
        if self._stream.eof:
            data = self._stream.unused_data + data
            if not data.startswith(GZIP_MAGIC):
                return b""  # behind the end: dropped, since zlib would keep all of it
            self._stream = zlib.decompressobj(ZLIB_OR_GZIP)
        return self._stream.decompress(self._stream.unconsumed_tail + data, STEP_BYTES)

    @property
    def _has_next_member(self) -> bool:
        return self._stream.eof and self._stream.unused_data.startswith(GZIP_MAGIC)
