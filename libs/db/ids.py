"""Names for rows: unique, and in order of their making."""

import secrets
import time


def new_id(prefix: str) -> str:
    """`prefix`-, 12 hexadecimal digits of milliseconds, 12 of chance: sorts by time of making."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"
