"""Parts of JSON of unknown form: what is not there, or of another type, is empty."""

import json
from typing import Any, cast

Body = dict[str, Any]


def mapping(value: Any) -> Body:
    """The value if it is an object, else an empty one."""
    return cast(Body, value) if isinstance(value, dict) else {}


def items_of(value: Any) -> list[Any]:
    """The items of a list; none of anything else."""
    return cast(list[Any], value) if isinstance(value, list) else []


def mappings(value: Any) -> list[Body]:
    """The objects in a list."""
    return [cast(Body, each) for each in items_of(value) if isinstance(each, dict)]


def loaded(value: Any) -> Any:
    """A value that may be JSON in a text."""
    if isinstance(value, str) and value[:1] in ("{", "[", '"'):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def object_in(value: Any) -> Body:
    """An object, which may be JSON in a text; else an empty one."""
    return mapping(loaded(value))


def as_text(value: Any) -> str:
    """A text as it is; anything else as JSON, and what JSON lacks as Python shows it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def from_json(value: Any) -> Any:
    """What a text of JSON holds.

    Raises:
        ValueError: the text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"a tool call is not JSON ({error})") from error
