"""How a version of a model or a dataset is named in a request."""

import re

from libs.errors import Invalid, Violation

_REFERENCE = re.compile(r"([a-z][a-z0-9-]{0,62})(?:@([1-9][0-9]{0,8}))?")


def parse_reference(reference: str, kind: str = "model") -> tuple[str, int]:
    """Name and number of "name" (number 0: the newest) or "name@n"; raises Invalid on anything else."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        message = f"'{reference[:60]}' is no {kind}; write its name, or name@number as in wdbc@2"
        raise Invalid.of([Violation(kind, message)])
    return match[1], int(match[2] or 0)
