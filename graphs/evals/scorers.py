"""When two answers are the same: each rule brings a text to a form that equal answers share.

    exact        to the letter, white space at the ends apart
    normalised   words alone: no case, punctuation or articles (Rajpurkar et al. 2016, SQuAD); of a
                 number the minus and the point stay, for `-5` is not `5`
    number       the last number of the text: `1,200.0` is `1200`, `0.5` is `1/2`
    set          the different items of a list, in any order: `b, a` is `[a; b; a]`
    contains     the words of the true answer stand in the answer, one after another

A text without the form has None in its place: nothing is equal to it.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction

Form = Callable[[str], str | None]
NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:(?<=\d)\.?|\.(?=\d))\d*"
    r"(?:[eE][-+]?\d{1,3})?(?:\s?/\s?\d+)?(?!\d|[eE][-+]?\d)"
)
SIGN = r"(?<![\w)\]])-(?=\d)"
"""A minus that belongs to a number: in `7-5` and `(7)-5` it does not."""
WORD = re.compile(rf"(?:{SIGN})?\d+(?:[.,:/]\d+)+|(?:{SIGN})?[^\W_]+|[^\s\w]")
ARTICLES = frozenset(("a", "an", "the"))
LONGEST = 1_000
"""Most characters of a number; a longer one is compared with none."""
MINUS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-"})


def exact(text: str) -> str | None:
    """The text, without white space at its ends."""
    return text.strip()


def normalised(text: str) -> str | None:
    """Words in lower case without articles; None where there are none."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(MINUS)
    # A mark within a number or a word is part of it: 3.5, don't.
    kept = re.sub(r"(?<=\w)['’](?=\w)", "", plain)
    kept = re.sub(r"(?<![\w.])\.(?=\d)", "0.", re.sub(r"[$€£¥](?=\.?\d)", "", kept))
    words = WORD.findall(kept)
    spoken = [word for word in words if word[-1].isalnum()]
    telling = [word for word in spoken if word not in ARTICLES]
    # An answer may be an article (the first of four choices) or a mark: then that is what counts.
    return " ".join(telling or spoken or words) or None


def number(text: str) -> str | None:
    """The last number, as a fraction in lowest terms; None where there is none, or that one has no
    value: an earlier number is not what the text ends with."""
    plain = unicodedata.normalize("NFKC", text).translate(MINUS).replace("⁄", "/")
    last = None
    for match in NUMBER.finditer(plain):
        last = match[0]
    value = None if last is None else _value(last.replace(",", ""))
    return None if value is None else str(value)


def _value(text: str) -> Fraction | None:
    if len(text) > LONGEST:
        return None
    top, _, bottom = text.partition("/")
    try:
        return Fraction(Decimal(top)) / (int(bottom) if bottom else 1)
    except (InvalidOperation, ValueError, ZeroDivisionError):
        return None


def items(text: str) -> str | None:
    """The items of a list, each normalised and once, in order of the alphabet."""
    # White space first: patterns that begin with any number of blanks take the square of them.
    lines = (" ".join(line.split()) for line in text.splitlines())
    plain = "\n".join(re.sub(r"^(?:[-*•]|\d+[.)]) ", "", line) for line in lines if line)
    parts = re.split(r"[;\n]|,(?!\d{3}\b)| (?:and|&) ", plain.strip("[](){}"))
    found = {form for part in parts if (form := normalised(part)) is not None}
    return " | ".join(sorted(found)) or None


FORMS: Mapping[str, Form] = {
    "exact": exact,
    "normalised": normalised,
    "number": number,
    "set": items,
    "contains": normalised,
}
"""The rules by name: what `--score` takes."""


def same(rule: str, answer: str, truth: str) -> bool:
    """True where an answer is as good as the true one by a rule of `FORMS`."""
    form = FORMS[rule]
    given, true = form(answer), form(truth)
    if given is None or true is None:
        return False
    return f" {true} " in f" {given} " if rule == "contains" else given == true
