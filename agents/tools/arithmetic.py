"""Exact arithmetic by walking a syntax tree, never by evaluating code.

Whole numbers and decimals are exact fractions; only an irrational root is rounded, and the result
tells. Every cap is tested before the work that it forbids: `9**9**9` is refused at once.
"""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from functools import reduce
from math import ceil, comb, factorial, floor, gcd, isqrt, lcm, log10
from typing import Any, cast

MAX_DIGITS = 4_000
"""Digits of any value, numerator and denominator together."""
MAX_DEPTH = 50
"""Parentheses, signs and calls within each other; a long sum is not deep."""
MAX_COUNT = 10_000
"""Argument of factorial and comb."""
ROOT_DIGITS = 40
"""Significant digits that an irrational root is worked out to."""

Number = int | Fraction
Work = Callable[..., Number]


@dataclass(frozen=True)
class Result:
    """What an expression comes to."""

    value: Number | bool
    """A truth where the expression compares."""
    rounded: bool = False
    """An irrational root was rounded on the way."""


def evaluate(source: str) -> Result:
    """The value of one expression in Python's notation.

    Raises:
        ValueError: it is no arithmetic, or beyond a cap; the text says which.
    """
    try:
        tree = ast.parse(source, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        why = f"{source[:80]!r} is no arithmetic; write for example 12 * (3 + 4)"
        raise ValueError(why) from error
    walk = _Walk(source.encode())
    body = tree.body
    value = walk.truth(body) if isinstance(body, ast.Compare) else walk.value(body)
    return Result(value, walk.rounded)


class _Walk:
    """One walk of a syntax tree."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self.rounded = False

    def truth(self, node: ast.Compare) -> bool:
        """Whether a comparison holds, `1 < 2 < 3` included."""
        sides = [self.value(side) for side in (node.left, *node.comparators)]
        if self.rounded:
            raise ValueError("a rounded root cannot be compared; compare the squares")
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            if type(op) not in COMPARISONS:
                raise ValueError("compare with < <= > >= == or !=")
            if not COMPARISONS[type(op)](left, right):
                return False
        return True

    def value(self, node: ast.expr, depth: int = 0) -> Number:
        """The exact value of a node."""
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep; work it out in parts")
        spine: list[ast.BinOp] = []
        while isinstance(node, ast.BinOp):  # A long sum leans to the left: no recursion for it.
            spine.append(node)
            node = node.left
        result = self._atom(node, depth)
        for step in reversed(spine):
            result = self._binary(step.op, result, self.value(step.right, depth + 1))
        return result

    def _atom(self, node: ast.expr, depth: int) -> Number:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return _literal(self._said(node))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self.value(node.operand, depth + 1)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            given = [self.value(each, depth + 1) for each in _listed(node.args)]
            return self._called(node.func.id, given)
        raise ValueError(f"{self._said(node)[:80]!r} is no number, sign or function that is known")

    def _said(self, node: ast.expr) -> str:
        return self._source[node.col_offset : node.end_col_offset].decode()

    def _called(self, name: str, given: list[Number]) -> Number:
        if name not in FUNCTIONS:
            raise ValueError(f"no function {name[:40]!r}; there are: {', '.join(FUNCTIONS)}")
        work, fewest, most = FUNCTIONS[name]
        if not fewest <= len(given) <= most:
            raise ValueError(f"{name} takes {fewest} to {most} numbers, not {len(given)}")
        value = _kept(work(*given))
        if name == "sqrt":
            self.rounded |= value * value != given[0]
        return value

    def _binary(self, op: ast.operator, left: Number, right: Number) -> Number:
        if isinstance(op, ast.Div | ast.FloorDiv | ast.Mod) and right == 0:
            raise ValueError("it divides by zero")
        if isinstance(op, ast.Pow) and right == Fraction(1, 2):
            return self._called("sqrt", [left])
        if type(op) not in OPERATORS:
            raise ValueError("the only signs between numbers are + - * / // % **")
        return _kept(OPERATORS[type(op)](left, right))


def _listed(nodes: Sequence[ast.expr]) -> list[ast.expr]:
    """The arguments of a call; `max([1, 2])` is `max(1, 2)`."""
    if len(nodes) == 1 and isinstance(nodes[0], ast.List | ast.Tuple):
        return nodes[0].elts
    return list(nodes)


def _literal(text: str) -> Number:
    """A number exactly as it was written, which a float is not."""
    text = text.lower().replace("_", "")
    if re.fullmatch(r"\d+|0[xob][0-9a-f]+", text):
        return _kept(int(text, 0))
    _, _, exponent = text.partition("e")
    if exponent and abs(int(exponent)) > MAX_DIGITS:
        raise ValueError(f"{text[:40]} has more than {MAX_DIGITS} digits")
    return _kept(Fraction(text))


def _digits(number: Number) -> float:
    """About how many digits a number has, numerator and denominator together."""
    bits = number.numerator.bit_length() + number.denominator.bit_length() - 1
    return bits * log10(2)


def _kept(number: Number) -> Number:
    if _digits(number) > MAX_DIGITS:
        raise ValueError(f"a value has more than {MAX_DIGITS} digits; ask for less")
    return number


def _power(base: Number, exponent: Number) -> Number:
    if exponent.denominator != 1:
        raise ValueError("an exponent must be a whole number, or 1/2")
    if base == 0 and exponent < 0:
        raise ValueError("it divides by zero")
    whole = exponent.numerator
    at_least = base.numerator.bit_length() + base.denominator.bit_length() - 2
    if abs(whole) * at_least * log10(2) > MAX_DIGITS:
        raise ValueError(f"the power has more than {MAX_DIGITS} digits; ask for less")
    if abs(base) == 1:
        whole %= 2
    return Fraction(base) ** whole


def _root(number: Number) -> Number:
    """The square root, exact where it is rational."""
    if number < 0:
        raise ValueError("a negative number has no square root")
    top, bottom = isqrt(number.numerator), isqrt(number.denominator)
    if top * top == number.numerator and bottom * bottom == number.denominator:
        return Fraction(top, bottom)
    context = Context(prec=ROOT_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)
    square = context.divide(Decimal(number.numerator), Decimal(number.denominator))
    return Fraction(context.sqrt(square))


def _count(number: Number, most: int = MAX_COUNT) -> int:
    if number.denominator != 1 or not 0 <= number <= most:
        raise ValueError(f"only whole numbers from 0 to {most} can be counted with")
    return number.numerator


def _whole(number: Number) -> int:
    if number.denominator != 1:
        raise ValueError("gcd and lcm take whole numbers")
    return number.numerator


def _add(left: Number, right: Number) -> Number:
    return _kept(left + right)


def _lcm(left: Number, right: Number) -> Number:
    return _kept(lcm(_whole(left), _whole(right)))


def _round(number: Number, places: Number = 0) -> Number:
    return round(Fraction(number), _count(places, MAX_DIGITS))


def _factorial(number: Number) -> Number:
    return factorial(_count(number))


def _comb(number: Number, chosen: Number) -> Number:
    return comb(_count(number), _count(chosen))


def _over_all(step: Callable[[Number, Number], Number], first: Number = 0) -> Work:
    """A function of any count of numbers, capped after each: the lcm of 300 that are 4,000 digits
    long takes 18 seconds."""
    return lambda *numbers: reduce(step, numbers, first)


FUNCTIONS: dict[str, tuple[Work, int, int]] = {
    "abs": (cast(Work, abs), 1, 1),
    "min": (lambda *numbers: min(numbers), 1, MAX_COUNT),
    "max": (lambda *numbers: max(numbers), 1, MAX_COUNT),
    "sum": (_over_all(_add), 1, MAX_COUNT),
    "round": (_round, 1, 2),
    "floor": (cast(Work, floor), 1, 1),
    "ceil": (cast(Work, ceil), 1, 1),
    "sqrt": (_root, 1, 1),
    "gcd": (lambda *numbers: gcd(*map(_whole, numbers)), 1, MAX_COUNT),
    "lcm": (_over_all(_lcm, 1), 1, MAX_COUNT),
    "factorial": (_factorial, 1, 1),
    "comb": (_comb, 2, 2),
}
"""Name: what works it out, and the fewest and most numbers that it takes."""
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: Fraction(left) / right,
    ast.FloorDiv: lambda left, right: left // right,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
