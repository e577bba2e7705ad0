"""Model cards: Markdown after a front matter of `key: value` lines between two `---`, as model hubs write them.

Reads that much of YAML and no more: texts, lists, and whatever is indented below a key is kept as lines. Nothing is made a number or a
truth value, so that `1.10` and `no` stay what was written.
"""

import re

from libs.errors import Invalid, Violation, near

FENCE = "---"
Front = dict[str, str | list[str]]
# Identifiers that model hubs know.
# fmt: off
LICENSES = (
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bsd", "bsd-2-clause",
    "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "gemma",
    "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1",
    "open-mdw", "openrail", "openrail++", "osl-3.0", "other", "pddl", "postgresql", "proprietary", "unknown", "unlicense", "wtfpl",
    "zlib",
)
# fmt: on
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)\s*:(?:\s+(.*))?$")


def check_card(card: str) -> Front:
    """The front matter. Raises Invalid that says on which line what is wrong, or what of the licence is missing."""
    front = read_front(card)
    license = front.get("license", "")
    if isinstance(license, list) and len(license) == 1:
        license = license[0]
    if not license:
        raise _wrong("card", "its front matter must name a license, e.g. 'license: apache-2.0'", "apache-2.0", "mit", "proprietary")
    if not isinstance(license, str) or license.lower() not in LICENSES:
        given = license if isinstance(license, str) else ", ".join(license)
        hints = near(given.replace(" ", "-"), LICENSES)
        known = f"did you mean {' or '.join(hints)}?" if hints else "take 'other' with license_name and license_link for one of your own"
        words = f"must be the identifier of one license such as apache-2.0 or mit, got '{given[:60]}'; {known}"
        raise _wrong("card.license", words, *hints)
    if license.lower() == "other":
        missing = [key for key in ("license_name", "license_link") if not front.get(key)]
        if missing:
            raise _wrong("card.license", f"'other' also needs {' and '.join(missing)} in the front matter")
    return front


def read_front(card: str) -> Front:
    """The front matter's keys; values are texts or lists of texts, nested ones their lines."""
    lines = card.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != FENCE:
        raise _wrong("card line 1", "must be '---': a model card begins with a front matter, e.g. '---', 'license: apache-2.0', '---'")
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == FENCE), None)
    if end is None:
        raise _wrong("card", "its front matter must be closed by a line '---'")
    front: Front = {}
    key = ""
    for number, line in enumerate(lines[1:end], 2):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line.startswith((" ", "\t", "-")):
            if not key or ((value := front[key]) and isinstance(value, str)):
                raise _wrong(f"card line {number}", f"belongs to no key: {line.strip()[:60]!r}")
            front[key] = [*front[key], _text(line.strip().removeprefix("-"))]
            continue
        found = _KEY.match(line)
        if found is None:
            raise _wrong(f"card line {number}", f"must be 'key: value', got {line.strip()[:60]!r}")
        key = found[1]
        if key in front:
            raise _wrong(f"card line {number}", f"says '{key}' a second time")
        front[key] = _value(found[2] or "", number)
    return front


def _value(text: str, number: int) -> str | list[str]:
    text = re.sub(r"(^|\s)#.*$", "", text).strip() if text[:1] not in ("'", '"') else text.strip()
    # What follows, indented, is its content.
    if text in ("", "|", ">", "|-", ">-"):
        return ""
    if text.startswith("["):
        if not text.endswith("]"):
            raise _wrong(f"card line {number}", "a list that begins with '[' must end with ']' on the same line")
        return [_text(item) for item in text[1:-1].split(",") if item.strip()]
    if text[0] in "&*!{%@`":
        raise _wrong(f"card line {number}", f"must be a text or a list; put quotes around a text that begins with '{text[0]}'")
    return _text(text)


def _text(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _wrong(field: str, message: str, *suggestions: str) -> Invalid:
    return Invalid.of([Violation(field, message, suggestions)])
