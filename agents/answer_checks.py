"""Checks of an answer's form: JSON, a JSON Schema, or any rules one after another.

A reply with one fenced block of Markdown counts as what stands in the block: models put JSON in
fences, and explain it, even where they are asked not to.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.verifiers import Verdict

Reason = Callable[[str, str], str]
"""From a question and an answer: why the answer fails; empty where it passes."""
FENCE = regex.compile(r"```(?:json)?[ \t]*\n(.*?)```", regex.DOTALL | regex.IGNORECASE)
REASON_CHARS = 300


@dataclass(frozen=True)
class AnswerChecks:
    """Applies named checks in their order; the first that fails is the verdict, with its reason."""

    checks: Sequence[tuple[str, Reason]]
    form_only: bool = False
    """They say nothing of whether an answer is right."""

    def check(self, question: str, answer: str) -> Verdict:
        for name, check in self.checks:
            if reason := check(question, answer):
                return Verdict(False, name, reason[:REASON_CHARS])
        return Verdict(True)


def unfenced(answer: str) -> str:
    """The text in the only fenced block of an answer; without one, or with several, the answer."""
    blocks = FENCE.findall(answer)
    return (blocks[0] if len(blocks) == 1 else answer).strip()


def compact_json(answer: str) -> str:
    """JSON without fence and needless white space, its keys in their order: equal values have equal
    texts. Another text stays as it is."""
    try:
        return json.dumps(_parsed(answer), ensure_ascii=False)
    except ValueError:
        return answer.strip()


def json_check(question: str, answer: str) -> str:
    """Why an answer is no JSON; empty where it is."""
    try:
        _parsed(answer)
    except ValueError as error:
        return f"no JSON: {error}"
    return ""


def _parsed(answer: str) -> Any:
    try:
        return json.loads(unfenced(answer), parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def schema_check(path: Path) -> Reason:
    """The check that an answer is JSON of a JSON Schema.

    Raises:
        UsageError: there is no such file, or it holds no schema.
    """
    import jsonschema
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        validator = _validator(_read_schema(path))
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "the top"
        raise UsageError(
            f"{path} is no JSON Schema: at {where}, {error.message[:REASON_CHARS]}; correct it"
        ) from error

    def check(question: str, answer: str) -> str:
        if reason := json_check(question, answer):
            return reason
        try:
            error = best_match(validator.iter_errors(_parsed(answer)))
        except Unresolvable as unresolved:
            raise RefluxError(
                f"{path} refers to {unresolved.ref!r}, which is not in the file: write it out there"
            ) from unresolved
        return "" if error is None else f"{error.json_path}: {error.message}"

    return check


def _validator(schema: Any) -> Any:
    import jsonschema
    from jsonschema.validators import validator_for
    from referencing import Registry

    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    kind.check_schema(schema)
    # Without its own registry, the library would fetch references to other addresses.
    registry: Any = Registry()
    return kind(schema, registry=registry)


def schema_problem(text: str, schema: Any) -> str:
    """How a text is no JSON of a JSON Schema, in words; empty where it is."""
    import jsonschema
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        error = best_match(_validator(schema).iter_errors(json.loads(text)))
    except (ValueError, RecursionError, jsonschema.SchemaError, Unresolvable) as failure:
        return str(failure)[:REASON_CHARS] or "it is nested too deep"
    return "" if error is None else error.message[:REASON_CHARS]


def _read_schema(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"check: there is no file {path}; name a JSON Schema, or `json`")
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # Also of UTF-8.
        raise UsageError(f"{path} is no JSON Schema: {error}; correct it") from error
    if not isinstance(schema, dict):
        kind = type(schema).__name__
        raise UsageError(f"{path} is no JSON Schema: it holds a {kind}, not an object")
    return schema
