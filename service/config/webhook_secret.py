"""How a secret that signs webhooks is written."""

import base64

PREFIX = "whsec_"
LENGTHS = (24, 64)
"""How many bytes it has, by the Standard Webhooks specification 1.0."""


def secret_bytes(secret: str) -> bytes:
    """Return the bytes of ``whsec_…``; raise ``ValueError`` that says what it takes, and shows nothing of it."""
    wrong = f"{PREFIX} and {LENGTHS[0]} to {LENGTHS[1]} bytes in base64"
    encoded = secret.removeprefix(PREFIX)
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise ValueError(wrong) from None
    if encoded == secret or not LENGTHS[0] <= len(decoded) <= LENGTHS[1]:
        raise ValueError(wrong)
    return decoded
