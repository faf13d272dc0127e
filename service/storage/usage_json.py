"""Records of usage as JSON: the form in which every store keeps them."""

import msgspec

from service.domain.usage_page import Unreadable
from service.domain.usage_record import UsageRecord

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(UsageRecord)


def record_as_json(record: UsageRecord) -> bytes:
    """Write a record, on one line."""
    return _ENCODER.encode(record)


def record_of_json(text: bytes | str) -> UsageRecord:
    """Read a record; raise ``msgspec.DecodeError`` where it is none."""
    return _DECODER.decode(text)


def record_or_not(text: bytes) -> UsageRecord | Unreadable:
    """Read a record, or what stands in the place of one: an entry that somebody else wrote, or a newer version."""
    try:
        return record_of_json(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Unreadable(text, type(error).__name__)
