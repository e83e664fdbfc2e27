"""Types of a quarantined copy's reply: it reads untrusted text, has no tools, and only a value of
its type leaves it (dual LLM pattern; CaMeL, arXiv 2503.18813).

A sub-question goes to such a copy by `to="typed:TYPE"`. A reply that is no value is read for the
one value that it holds: small models add words. A reply with none, or with several, is rejected. A
value cannot instruct anybody; it can still be wrong, for the text may lie.
"""

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass

TYPED = "typed:"
NAMES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "yes or no",
    "date": "a date like 2024-05-31",
    "choice": "one of its choices, as in typed:choice:red|blue",
    "line": "one line of at most 80 characters, which stays untrusted",
}
"""The types, and what each asks for."""
LINE_CHARS = 80
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
NUMBER = re.compile(rf"(?<![\w.])(?<!\w[-+−])[-+−]?{DIGITS}(?!\w|[-−.,]\w)")
"""A number by itself: none in `inv-079`, `10-12` or `2024-05-31`."""
MAX_DIGITS = 30


@dataclass(frozen=True)
class ValueType:
    """A type by its name, such as `integer` or `choice:red|blue`."""

    name: str

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def choices(self) -> tuple[str, ...]:
        """Of a choice, in the overseer's words."""
        return tuple(
            each.strip() for each in self.name.partition(":")[2].split("|") if each.strip()
        )

    @property
    def problem(self) -> str | None:
        """Why there is no such type; None where there is."""
        if self.kind not in NAMES:
            return f"there is no type {self.kind[:40]!r}; there are: {', '.join(NAMES)}"
        if (self.kind == "choice") != (len(self.choices) > 1):
            return "a choice names two or more, as in typed:choice:red|blue; no other type does"
        return None

    @property
    def is_value(self) -> bool:
        """True where nothing of this type can hold an instruction."""
        return self.kind != "line"

    @property
    def instruction(self) -> str:
        """What a copy is told of its reply."""
        wanted = NAMES[self.kind]
        if self.kind == "choice":
            wanted = "one of these: " + ", ".join(self.choices)
        elif self.kind == "line":
            wanted = f"one line of at most {LINE_CHARS} characters"
        return f"Reply with {wanted}, and nothing else."

    def read(self, reply: str) -> str | None:
        """The value of a reply in one form for equal values; None without one."""
        return _READERS[self.kind](reply.strip(), self.choices)


def type_of(to: str) -> ValueType | None:
    """The type that a sub-question's `to` names; None where it names none."""
    return ValueType(to.removeprefix(TYPED)) if to.startswith(TYPED) else None


def _single(values: list[str]) -> str | None:
    """The one value among those that a reply holds."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _numbers(reply: str) -> list[str]:
    return [each.replace(",", "").replace("−", "-").lstrip("+") for each in NUMBER.findall(reply)]


def _number(reply: str, choices: tuple[str, ...]) -> str | None:
    value = _single([_canonical(each) for each in _numbers(reply)])
    return value if value is not None and len(value) <= MAX_DIGITS else None


def _canonical(number: str) -> str:
    sign, digits = ("-", number[1:]) if number.startswith("-") else ("", number)
    whole, point, part = digits.partition(".")
    part = part.rstrip("0") if point else ""
    whole = whole.lstrip("0") or "0"
    text = f"{whole}.{part}" if part else whole
    return text if text == "0" else sign + text


def _integer(reply: str, choices: tuple[str, ...]) -> str | None:
    value = _number(reply, choices)
    return None if value is None or "." in value else value


def _boolean(reply: str, choices: tuple[str, ...]) -> str | None:
    words = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
    return _single([words[each] for each in re.findall(r"\w+", reply.casefold()) if each in words])


def _date(reply: str, choices: tuple[str, ...]) -> str | None:
    value = _single(re.findall(r"(?<![0-9])[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9])", reply))
    try:
        return None if value is None else datetime.date.fromisoformat(value).isoformat()
    except ValueError:
        return None


def _choice(reply: str, choices: tuple[str, ...]) -> str | None:
    exact = [each for each in choices if each.casefold() == reply.strip(" .\"'").casefold()]
    if exact:
        return exact[0]
    text = reply.casefold()
    held = [e for e in choices if re.search(rf"(?<!\w){re.escape(e.casefold())}(?!\w)", text)]
    return held[0] if len(held) == 1 else None


def _line(reply: str, choices: tuple[str, ...]) -> str | None:
    one_line = reply and len(reply) <= LINE_CHARS and reply.isprintable()
    return reply if one_line else None


_READERS: dict[str, Callable[[str, tuple[str, ...]], str | None]] = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "date": _date,
    "choice": _choice,
    "line": _line,
}
