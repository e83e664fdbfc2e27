"""The calculator: a tool that evaluates one arithmetic expression exactly.

It walks a syntax tree and never runs code. Whole numbers and decimals are exact fractions; only an
irrational root is rounded, and the result says so. Every cap is tested before the work that it
forbids: `9**9**9` is refused at once. No library does this: asteval, simpleeval and pydantic-monty
compute 0.1 + 0.2 as 0.30000000000000004.
"""

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from functools import reduce
from math import ceil, comb, factorial, floor, gcd, isqrt, lcm, log10
from typing import Any

from reflux.agents.tools.protocol import TextTool, ToolReply, text_parameter
from reflux.agents.types import ToolSpec

MAX_CHARS = 4_000
MAX_DIGITS = 4_000
"""Maximum digits of any value, numerator and denominator together."""
MAX_DEPTH = 50
"""Maximum nesting of parentheses, signs and calls; a long sum is not deep."""
MAX_COUNT = 10_000
ROOT_DIGITS = 40
"""Significant digits of an irrational root."""
SHOWN_DIGITS = 30
"""Significant digits of a rounded value in the reply."""
SHOWN_PLACES = 60
"""A decimal with more places is written as a fraction."""
ROUNDED = " (rounded)"

LEAD = re.compile(
    r"^(?:(?:what(?:['’]s)?|is|are|the|value|result|of|calculate|compute|evaluate|how|much|please"
    r"|find|work|out|tell|me)\b[\s:,]*)+",
    re.IGNORECASE,
)
"""Words that may precede an expression. Any other word would make it another question:
"five minus 3" is not 3."""
FACTORIAL = re.compile(r"[\d)] ?!(?!=)")
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"})


@dataclass(frozen=True)
class Result:
    """The value of an expression; a bool if it is a comparison."""

    value: Fraction | bool
    rounded: bool = False
    """True if the expression holds an irrational root."""


def evaluate(source: str) -> Result:
    """The value of one expression in Python's notation.

    Raises:
        ValueError: the expression is not arithmetic, or exceeds a cap; the text says which.
    """
    try:
        node = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = f"{source[:80]!r} is not arithmetic; write for example 12 * (3 + 4)"
        raise ValueError(reason) from error
    walk = _Walk(source.encode())
    value = walk.comparison(node) if isinstance(node, ast.Compare) else walk.value(node)
    return Result(value, walk.rounded)


class _Walk:
    def __init__(self, source: bytes) -> None:
        self._source = source
        self.rounded = False

    def comparison(self, node: ast.Compare) -> bool:
        """Whether a comparison holds, `1 < 2 < 3` included."""
        sides = [self.value(side) for side in (node.left, *node.comparators)]
        if self.rounded:
            raise ValueError("a rounded root cannot be compared; compare the squares")
        if any(type(op) not in COMPARISONS for op in node.ops):
            raise ValueError("compare with < <= > >= == or !=")
        pairs = zip(node.ops, sides, sides[1:], strict=False)
        return all(COMPARISONS[type(op)](left, right) for op, left, right in pairs)

    def value(self, node: ast.expr, depth: int = 0) -> Fraction:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep; work it out in parts")
        spine: list[ast.BinOp] = []
        while isinstance(node, ast.BinOp):  # A long sum leans to the left: no recursion for it.
            spine.append(node)
            node = node.left
        result = self._operand(node, depth)
        for step in reversed(spine):
            result = self._binary(step.op, result, self.value(step.right, depth + 1))
        return result

    def _operand(self, node: ast.expr, depth: int) -> Fraction:
        text = self._source[node.col_offset : node.end_col_offset].decode()
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return _literal(text)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self.value(node.operand, depth + 1)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            nodes = node.args
            if len(nodes) == 1 and isinstance(nodes[0], ast.List | ast.Tuple):
                nodes = nodes[0].elts  # max([1, 2]) is max(1, 2).
            return self._call(node.func.id, [self.value(each, depth + 1) for each in nodes])
        raise ValueError(f"{text[:80]!r} is not a number, sign or function that is known")

    def _call(self, name: str, numbers: list[Fraction]) -> Fraction:
        if name not in FUNCTIONS:
            raise ValueError(f"no function {name[:40]!r}; there are: {', '.join(FUNCTIONS)}")
        function, fewest, limit = FUNCTIONS[name]
        if not fewest <= len(numbers) <= limit:
            raise ValueError(f"{name} takes {fewest} to {limit} numbers, not {len(numbers)}")
        value = _capped(Fraction(function(*numbers)))
        if name == "sqrt":
            self.rounded |= value * value != numbers[0]
        return value

    def _binary(self, op: ast.operator, left: Fraction, right: Fraction) -> Fraction:
        if isinstance(op, ast.Div | ast.FloorDiv | ast.Mod) and right == 0:
            raise ValueError("it divides by zero")
        if isinstance(op, ast.Pow) and right == Fraction(1, 2):
            return self._call("sqrt", [left])
        if type(op) not in OPERATORS:
            raise ValueError("the only signs between numbers are + - * / // % **")
        return _capped(Fraction(OPERATORS[type(op)](left, right)))


def _literal(text: str) -> Fraction:
    """A number exactly as it is written, which a float is not."""
    text = text.lower().replace("_", "")
    if re.fullmatch(r"\d+|0[xob][0-9a-f]+", text):
        return _capped(Fraction(int(text, 0)))
    _, _, exponent = text.partition("e")
    if exponent and abs(int(exponent)) > MAX_DIGITS:
        raise ValueError(f"{text[:40]} has more than {MAX_DIGITS} digits")
    return _capped(Fraction(text))


def _capped(number: Fraction) -> Fraction:
    bits = number.numerator.bit_length() + number.denominator.bit_length() - 1
    if bits * log10(2) > MAX_DIGITS:
        raise ValueError(f"a value has more than {MAX_DIGITS} digits; ask for less")
    return number


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError("an exponent must be a whole number, or 1/2")
    if base == 0 and exponent < 0:
        raise ValueError("it divides by zero")
    power = exponent.numerator
    min_bits = base.numerator.bit_length() + base.denominator.bit_length() - 2
    if abs(power) * min_bits * log10(2) > MAX_DIGITS:
        raise ValueError(f"the power has more than {MAX_DIGITS} digits; ask for less")
    return Fraction(base) ** (power % 2 if abs(base) == 1 else power)


def _root(number: Fraction) -> Fraction:
    """The square root, exact if it is rational."""
    if number < 0:
        raise ValueError("a negative number has no square root")
    root = Fraction(isqrt(number.numerator), isqrt(number.denominator))
    if root * root == number:
        return root
    context = Context(prec=ROOT_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)
    return Fraction(context.sqrt(context.divide(number.numerator, number.denominator)))


def _count(number: Fraction, limit: int = MAX_COUNT) -> int:
    if number.denominator != 1 or not 0 <= number <= limit:
        raise ValueError(f"only whole numbers from 0 to {limit} can be counted with")
    return number.numerator


def _whole(number: Fraction) -> int:
    if number.denominator != 1:
        raise ValueError("gcd and lcm take whole numbers")
    return number.numerator


def _lcm(*numbers: Fraction) -> int:
    """Capped after each number: the lcm of 300 numbers of 4,000 digits takes 18 seconds."""
    return reduce(
        lambda left, right: _capped(Fraction(lcm(left, right))).numerator, map(_whole, numbers), 1
    )


FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "abs": (abs, 1, 1),
    "min": (lambda *numbers: min(numbers), 1, MAX_COUNT),
    "max": (lambda *numbers: max(numbers), 1, MAX_COUNT),
    "sum": (lambda *numbers: reduce(lambda a, b: _capped(a + b), numbers), 1, MAX_COUNT),
    "round": (lambda number, places=Fraction(0): round(number, _count(places, MAX_DIGITS)), 1, 2),
    "floor": (floor, 1, 1),
    "ceil": (ceil, 1, 1),
    "sqrt": (_root, 1, 1),
    "gcd": (lambda *numbers: gcd(*map(_whole, numbers)), 1, MAX_COUNT),
    "lcm": (_lcm, 1, MAX_COUNT),
    "factorial": (lambda number: factorial(_count(number)), 1, 1),
    "comb": (lambda number, chosen: comb(_count(number), _count(chosen)), 2, 2),
}
"""Name: the function, and the minimum and maximum count of its arguments."""
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Fraction, Fraction], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


class Calculator(TextTool):
    """Evaluates one expression; the reply is a number alone, of at most 4,010 characters.

    A number is whole, a finite decimal, or a fraction in lowest terms, and may be part of a further
    expression: an overseer writes `({0})` there rather than `{0}`, for the sign or the fraction.
    """

    argument = "expression"
    seconds = 10.0
    max_chars = MAX_CHARS
    spec = ToolSpec(
        "calculator",
        "Exact arithmetic with + - * / // % **, parentheses, comparisons, and the functions "
        f"{', '.join(FUNCTIONS)}.",
        text_parameter(argument, "For example 12 * (3 + 4)"),
    )

    async def reply(self, text: str) -> ToolReply:
        """Evaluate "12*(3+4)" or "What is 12 * (3 + 4)?"; other prose is refused."""
        return ToolReply(written(evaluate(expression_in(text))))


def expression_in(text: str) -> str:
    """The expression in a plain text, on one line and with Python's signs.

    Raises:
        ValueError: it writes a factorial as `n!`.
    """
    line = " ".join(text.replace(ROUNDED, "").split()).translate(SIGNS)
    if FACTORIAL.search(line):  # As an exclamation mark it would be dropped, and 5! be 5.
        raise ValueError(f"{text[:80]!r} has a factorial: write factorial(n) for n!")
    line = LEAD.sub("", line).rstrip(" ?.=!").strip()
    line = re.sub(r"(?<=[\d)]) x (?=[\d(])", " * ", line)
    if not re.search(r"[A-Za-z]", line):  # In max(1,000) the comma separates arguments.
        line = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", line)
    return line


def written(result: Result) -> str:
    """A result as text that the calculator reads again; a rounded one says so."""
    value = result.value
    if isinstance(value, bool):
        return "true" if value else "false"
    if result.rounded:
        context = Context(prec=SHOWN_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)
        return f"{context.divide(Decimal(value.numerator), value.denominator):f}{ROUNDED}"
    if value.denominator == 1:
        return str(value.numerator)
    finite = (n for n in range(1, SHOWN_PLACES + 1) if 10**n % value.denominator == 0)
    places = next(finite, None)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
