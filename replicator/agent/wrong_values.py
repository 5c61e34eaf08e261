"""What is wrong with a value that somebody gave, in words of the person who gave it."""

import re
from enum import StrEnum
from typing import get_args, get_type_hints

import msgspec

_PLACED = re.compile(r"(?s)(?P<wrong>.+) - at `\$\.(?P<place>[^`]+)`")  # as msgspec says it
_NO_CHOICE = "Invalid enum value "


def in_words(error: msgspec.ValidationError, type_: type[msgspec.Struct]) -> str:
    """Which member is wrong, and what it may be: "orphans: 'x' is none of keep, delete, move"."""
    match = _PLACED.fullmatch(str(error))
    if match is None:
        return f"request body: {error}"
    wrong, place = match["wrong"], match["place"]
    choices = _choices(get_type_hints(type_).get(re.split(r"[.\[]", place)[0]))
    if wrong.startswith(_NO_CHOICE) and choices:
        return f"{place}: {wrong.removeprefix(_NO_CHOICE)} is none of {', '.join(choices)}"
    return f"{place}: {wrong[0].lower()}{wrong[1:]}"


def _choices(annotation: object) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return [*annotation]
    return [choice for inner in get_args(annotation) for choice in _choices(inner)]
