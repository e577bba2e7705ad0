"""Every error as two lines: what is wrong and where; what would be right. And which exit code it means."""

import re
from collections.abc import Sequence
from typing import Any

from leptonai._errors import (
    APIError,
    ConnectionFailed,
    Forbidden,
    InvalidInput,
    JobFailed,
    LeptonError,
    NotFound,
    QuotaExceeded,
    Timeout,
    Unauthenticated,
    Violation,
)
from leptonai._record import clean

_LISTS = {"dataset": "lepton dataset list", "train": "lepton train list", "model": "lepton model list", "endpoint": "lepton endpoint list"}
_LISTS |= {"market": "lepton market list", "compute": "lepton compute nodes", "account": "lepton account me"}


def exit_code(error: Exception) -> int | None:
    """0–3 as `lepton --help` says; None for what is a mistake of this program."""
    if isinstance(error, ConnectionFailed):
        return 3
    if isinstance(error, APIError):
        return 2 if 400 <= error.status < 500 and not error.retryable and error.status != 429 else 1
    if isinstance(error, InvalidInput):
        return 2
    if isinstance(error, LeptonError):
        return 1
    if type(error).__name__ == "Abort":
        return 130
    return 2 if hasattr(error, "format_message") else None  # the parser's own errors


def two_lines(error: Exception, words: Sequence[str] = ()) -> tuple[str, str]:
    """("error: …", "  fix: …"), each on one line and without control characters."""
    what, fix = _told(error, list(words))
    return f"error: {_line(what)}", f"  fix: {_line(fix)}"


def _told(error: Any, words: list[str]) -> tuple[str, str]:
    if isinstance(error, JobFailed):
        what = str(error).splitlines()[0]
        violations = error.problem.errors if error.problem else ()
        return what, _advice(violations, what) or error.advice
    if isinstance(error, Unauthenticated) and not error.raw:
        return "there is no API key", _by_kind(error, words)
    if isinstance(error, APIError):
        trace = f" (trace {error.trace_id})" if error.trace_id else ""
        return _where(error), (_advice(error.errors, error.detail) or _by_kind(error, words)) + trace
    if isinstance(error, ConnectionFailed):
        return f"cannot reach Lepton at {error.url} ({error.reason})", error.hint
    if isinstance(error, InvalidInput):
        return error.message, error.hint or f"`{_help(words)}` has an example"
    if isinstance(error, Timeout):
        return str(error), "try again, or look at the platform's own log"
    if hasattr(error, "format_message"):
        what = error.format_message()
        return what, f"`{_help(words[:1] if 'command' in what else words)}` shows what it takes, with an example"
    return str(error), "try again; `lepton status` tells how the platform is"


def _where(error: APIError) -> str:
    """The sentence, with the place in front where it lacks it."""
    first = error.errors[0].field if error.errors else ""
    named = not first or re.search(rf"(?<!\w){re.escape(first)}(?!\w)", error.detail)
    return error.detail if named else f"{first}: {error.detail}"


def _advice(violations: Sequence[Violation], detail: str) -> str:
    """What the violations say beyond the sentence: further ones, and accepted values."""
    further = [str(violation) for violation in violations if violation.message not in detail]
    if further:
        return "; ".join(further[:5]) + (f"; and {len(further) - 5} more" if len(further) > 5 else "")
    options = list(dict.fromkeys(option for violation in violations for option in violation.suggestions))
    return f"accepted: {', '.join(options[:10])}" if options else ""


def _by_kind(error: APIError, words: list[str]) -> str:
    if isinstance(error, QuotaExceeded):
        facts = [f"{name} {error.meta[name]}" for name in ("limit", "used", "remaining") if name in error.meta]
        plans = f"more with the plan {' or '.join(error.plans)}: `lepton account set-plan {error.plans[0]}`" if error.plans else ""
        return "; ".join(part for part in (", ".join(facts), plans) if part) or "`lepton account plans` shows which plan has more"
    if isinstance(error, Unauthenticated):
        return "set LEPTON_API_KEY (or --api-key) to a valid key; `lepton up` prints a first one"
    if isinstance(error, Forbidden):
        if error.code == "subscription_required":
            return "subscribe first: `lepton market subscribe SLUG`"
        return "ask an admin of the workspace for a key with a higher role; `lepton account me` shows yours"
    noun = next((word for word in words if word in _LISTS), "")
    if isinstance(error, NotFound):
        return f"`{_LISTS.get(noun, 'lepton --help')}` shows what there is"
    if error.status >= 500 or error.retryable:
        return "try again" + ("" if error.status in (502, 503, 504) else "; `lepton status` tells how the platform is")
    return f"change what the line above names; `{_help(words)}` has an example"


def _help(words: list[str]) -> str:
    plain = []
    for word in words:
        if word.startswith("-"):
            break
        plain.append(word)
    known = plain[:2] if plain and plain[0] in _LISTS else plain[:1] if plain[:1] == ["trace"] else []
    return " ".join(["lepton", *known, "--help"])


def _line(text: str) -> str:
    text = " ".join(clean(text).split())
    return text if len(text) <= 1000 else text[:999] + "…"
