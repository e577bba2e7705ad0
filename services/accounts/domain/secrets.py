"""API keys: how they are made, what of them is kept, and which ones may be brought along."""

import hashlib
import secrets

from libs.errors import Invalid, Violation

PREFIX_SIZE = 8
MAX_SIZE = 255


def new_secret() -> str:
    """256 random bits, recognisable in a text by "lpt_"."""
    return f"lpt_{secrets.token_urlsafe(32)}"


def digest(secret: str) -> bytes:
    """What is kept of a secret: enough for one of 256 bits."""
    return hashlib.sha256(secret.encode()).digest()


def prefix(secret: str) -> str:
    """What is shown of a secret, to tell keys apart; never more than half of a short one that was brought along."""
    return secret[: min(PREFIX_SIZE, len(secret) // 2)]


def check_given(secret: str) -> None:
    """Raises Invalid where a secret that somebody brings along could not travel in a header."""
    if not 0 < len(secret) <= MAX_SIZE or any(not "!" <= character <= "~" for character in secret):
        raise Invalid.of(
            [Violation("bootstrap_key", f"must have 1 to {MAX_SIZE} visible ASCII characters and no spaces, got {len(secret)} characters")]
        )
