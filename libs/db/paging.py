"""Keyset pages: a token says after which key the next page begins, so that inserts skip and double nothing."""

import base64
import binascii

from libs.errors import Invalid, Violation

DEFAULT_PAGE = 50


def page_size(asked: int) -> int:
    """How many rows a page has; 0 means the default of 50."""
    return asked or DEFAULT_PAGE


def page_token(last_key: str) -> str:
    """The token that makes the next page begin after `last_key`."""
    return base64.urlsafe_b64encode(last_key.encode()).decode().rstrip("=")


def start_after(token: str) -> str | None:
    """The key after which a page begins; None for the first page. Raises Invalid on a token that no page gave."""
    if not token:
        return None
    try:
        key = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
        if "\0" in key:
            raise ValueError("no key holds NUL")
        return key
    except (binascii.Error, ValueError):
        raise Invalid.of([Violation("page_token", "must be the next_page_token of the page before")]) from None
