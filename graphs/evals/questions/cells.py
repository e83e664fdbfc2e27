"""The cells of a record: the value at a path of keys, the answers that it holds, its text."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

from reflux.graphs.evals.scoring.scorers import final_answer


def value_at(body: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or at a path of keys."""
    if path in body:
        return body[path]
    value: Any = body
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f'it lacks "{path}"; it has {", ".join(sorted(body))}')
        value = cast(Mapping[str, Any], value)[part]
    return value


def flat_values(value: Any, key: str) -> list[Any]:
    """The answers that a column holds."""
    if isinstance(value, Mapping):
        held = cast(Mapping[str, Any], value)
        known = [held[each] for each in ("text", "value", "answer", "aliases") if each in held]
        if not known:
            raise TypeError(
                f'"{key}" holds {", ".join(held) or "nothing"}; name the answer by --answer-key, '
                f"for example {key}.{next(iter(held), 'text')}"
            )
        return [each for part in known for each in flat_values(part, key)]
    if isinstance(value, list):
        values = cast(list[Any], value)
        if not values:
            raise ValueError(f'"{key}" is an empty list')
        return [each for part in values for each in flat_values(part, key)]
    if isinstance(value, bool) or value in ("TRUE", "FALSE", "True", "False"):
        return ["yes", "true"] if value in (True, "TRUE", "True") else ["no", "false"]
    if isinstance(value, str) and "####" in value:
        return [final_answer(value) or value]
    return [value]


def text_of(value: Any, key: str, blank: bool = False) -> str:
    """A text, or a number as one: a column of whole numbers with a gap is one of floats."""
    if isinstance(value, float) and value != value:  # NaN is a gap.
        value = ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, list) and all(isinstance(part, dict) for part in cast(list[Any], value)):
        kinds = {str(part.get("type", "text")) for part in cast(list[dict[str, Any]], value)}
        if other := sorted(kinds - {"text", "input_text", "output_text"}):
            raise ValueError(f'"{key}" holds {other[0]}, and questions are text')
        value = "".join(str(part.get("text", "")) for part in cast(list[dict[str, Any]], value))
    if not isinstance(value, str):
        raise TypeError(f'"{key}" is no text')
    if not value.strip() and not blank:
        raise ValueError(f'"{key}" is empty')
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f'"{key}" is no Unicode text: it holds half a surrogate pair')
    return value
