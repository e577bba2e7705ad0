"""What must not be read in a log or a trace: values under telling names, and values that look like keys anywhere."""

import re
from typing import Any

HIDDEN = "[hidden]"

_NAMES = re.compile(
    r"(^|[_.\- ])(authorization|cookie|credentials?|passwd|password|pwd|secret|token|api[_\-]?key|access[_\-]?key|private[_\-]?key)$", re.I
)
# Words that end like a secret and are none.
_HARMLESS = re.compile(r"(^|[_.\-])(page|next_page|resume|fencing|lease|idempotency)[_\-]?(token|key)$", re.I)
_VALUES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|\b(?:Bearer|Basic)\s+[A-Za-z0-9._~+/=\-]{8,}"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+\.[A-Za-z0-9_\-]*"
    r"|\b(?:sk|lk|lpt|lep|lepton)[_\-](?:[a-z]{1,8}[_\-])?[A-Za-z0-9_\-]{20,}",
    re.S,
)
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.\-]*://[^\s/:@]*):[^\s/@]+@", re.I)
_DEPTH = 4


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is for nobody's eyes."""
    return bool(_NAMES.search(name)) and not _HARMLESS.search(name)


def redacted(value: Any, depth: int = _DEPTH) -> Any:
    """The value with every secret in it hidden; containers are looked into, `depth` levels deep."""
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, dict) and depth:
        return {
            key: HIDDEN if isinstance(key, str) and item and is_secret_name(key) else redacted(item, depth - 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple) and depth:
        return [redacted(item, depth - 1) for item in value]
    return value


def redacted_text(text: str) -> str:
    """The text without keys, tokens and the passwords in addresses."""
    if len(text) < 8:
        return text
    return _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", _VALUES.sub(HIDDEN, text))
