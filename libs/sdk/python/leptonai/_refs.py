"""Names of versions: "wdbc" is the newest, "wdbc@2" the second."""

from typing import Any

from leptonai._errors import InvalidInput


def parse(ref: Any) -> tuple[str, int]:
    """("wdbc", 2) of "wdbc@2", ("wdbc", 0) of "wdbc"; takes version objects too. Raises InvalidInput."""
    text = name_of(ref)
    name, at, number = text.partition("@")
    if not name or (at and not (number.isascii() and number.isdigit() and 0 < len(number) < 10 and int(number) > 0)):
        raise InvalidInput(f"{text!r} is not a version", f"it looks like {name or 'name'!s}@2, or {name or 'name'!s} for the newest")
    return name, int(number or 0)


def name_of(ref: Any) -> str:
    """The text that names it: of a version object its `ref`, of another result its id, slug or name."""
    text = ref if isinstance(ref, str) else next((v for a in ("ref", "id", "slug", "name") if (v := getattr(ref, a, None))), None)
    if not isinstance(text, str):
        raise InvalidInput(f"{ref!r:.60} is not a name", 'it looks like "wdbc" or "wdbc@2"')
    return text
