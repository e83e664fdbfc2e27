"""The calculator: a tool that works out one arithmetic expression, exactly."""

import json
import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from typing import Any

from reflux.agents.tools.arithmetic import FUNCTIONS, Result, evaluate
from reflux.agents.tools.protocol import ToolReply, guarded, text_argument
from reflux.agents.types import ToolSpec

MAX_CHARS = 4_000
"""Length of an expression."""
SECONDS = 10.0
SHOWN_DIGITS = 30
"""Significant digits shown of a value that was rounded."""
SHOWN_PLACES = 60
"""A decimal that goes on for longer is written as a fraction."""
ROUNDED = " (rounded)"

LEAD = re.compile(
    r"^(?:(?:what(?:['’]s)?|is|are|the|value|result|of|calculate|compute|evaluate|how|much|please"
    r"|find|work|out|tell|me)\b[\s:,]*)+",
    re.IGNORECASE,
)
"""Words that may come before an expression. Any other word would make it another question:
"five minus 3" is not 3."""
FACTORIAL = re.compile(r"[\d)] ?!(?!=)")
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"})


class Calculator:
    """Works out one expression; the reply is a number and nothing else, at most 4,010 characters.

    A number is whole, a decimal that ends, or a fraction in lowest terms, and may be part of a
    further expression: H writes `({0})` there rather than `{0}`, for the sign or the fraction.
    """

    spec = ToolSpec(
        "calculator",
        "Exact arithmetic with + - * / // % **, parentheses, comparisons, and the functions "
        f"{', '.join(FUNCTIONS)}.",
        json.dumps(
            {
                "type": "object",
                "properties": {
                    "expression": {"type": "string", "description": "For example 12 * (3 + 4)"}
                },
                "required": ["expression"],
                "additionalProperties": False,
            }
        ),
    )

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """Work out `expression`; what cannot be worked out is refused in words."""
        return await guarded(self._call(arguments), SECONDS)

    async def answer(self, question: str) -> ToolReply:
        """Work out "12*(3+4)" or "What is 12 * (3 + 4)?"; other prose is refused."""
        return await guarded(self._call({"expression": question}), SECONDS)

    async def _call(self, arguments: Mapping[str, Any]) -> ToolReply:
        text = text_argument(arguments, "expression", MAX_CHARS)
        return ToolReply(written(evaluate(expression_in(text))))


def expression_in(text: str) -> str:
    """The expression in a plain text, in one line and with Python's signs.

    Raises:
        ValueError: it writes a factorial as `n!`.
    """
    line = " ".join(text.replace(ROUNDED, "").split()).translate(SIGNS)
    if FACTORIAL.search(line):  # As an exclamation mark it would be dropped, and 5! be 5.
        raise ValueError(f"{text[:80]!r} has a factorial: write factorial(n) for n!")
    line = LEAD.sub("", line).rstrip(" ?.=!").strip()
    line = re.sub(r"(?<=[\d)]) x (?=[\d(])", " * ", line)
    if not re.search(r"[A-Za-z]", line):  # In max(1,000) the comma parts arguments.
        line = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", line)
    return line


def written(result: Result) -> str:
    """A result as text that the calculator reads again; a rounded one says so."""
    if isinstance(result.value, bool):
        return "true" if result.value else "false"
    value = Fraction(result.value)
    if result.rounded:
        context = Context(prec=SHOWN_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)
        shown = context.divide(Decimal(value.numerator), Decimal(value.denominator))
        return f"{shown:f}{ROUNDED}"
    if value.denominator == 1:
        return str(value.numerator)
    ends = (n for n in range(1, SHOWN_PLACES + 1) if 10**n % value.denominator == 0)
    places = next(ends, None)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
