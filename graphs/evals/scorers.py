"""When an answer is right: rules that compare it with a true one.

    exact        the same characters, except for white space at the ends
    normalised   the same words in any script, without case, punctuation, and articles before
                 another word (Rajpurkar et al. 2016, SQuAD); symbols are words: `C++` is not `C`
    contains     the words of the true answer occur in the answer, one after another
    number       the number that the answer ends in or names as its answer: `1,200.0` is `1200`,
                 `2 1/2` and `\\frac{5}{2}` are `2.5`, `50%` is `0.5`, and `50` where that is asked
    set          the same items of a list, in any order: `b, a` is `[a; b; a]`
    choice       the letters of the choices that the answer names, or whose text it holds, as
                 Inspect and lm-evaluation-harness extract them
    math         equal mathematics, by math-verify: `\\sqrt{12}` is `2\\sqrt{3}`

A text that has no such form is equal to nothing. No rule raises or hangs, whatever a model wrote.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from string import ascii_uppercase

import regex

from reflux.graphs.evals.mathematics import (
    MATH,
    MAX_CHARS,
    canonical,
    final_answer,
    number,
    one_number,
    same_number,
)

ARTICLES = frozenset(("a", "an", "the"))
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts without spaces between words: each character counts as a word."""
MATH_DOLLARS = regex.compile(r"\$(?! )([^$\n]{1,200})(?<! )\$(?!\d)")
"""$…$ around mathematics, as Pandoc reads it: no white space within, no digit behind."""
# Between numbers, letters and parentheses; `well-known` and `COVID-19` have hyphens.
SUBTRACTION = regex.compile(r"(?<!\w)(\d[\d.]*|\p{L}|[)\]]) ?- ?(?=\d|\p{L}(?!\w)|\()")
TOKEN = regex.compile(
    rf"""(?V1)
      (?<![\w)\]])-?\d+(?:[.,:/]\d+)+(?:\s?%)?          # -1.5, 10:30, 1/2, 1.5 %
    | (?:(?<![\w)\]])-)?\d+(?:\s?%|(?!\w))              # -5, 50%
    | [{UNSPACED}]\p{{M}}*
    | \b\p{{Lu}}\p{{Ll}}?\d*-(?!\w)                     # A-, Cl-
    | [[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]+(?:[+\#]+(?!\w))?   # C++, C#, Na+
    | [<>=!+*/-]=+ | [-=]> | && | \|\|
    | (?<=[\w)\]])\*(?=[\w(\[]) | (?<=[\w)\]]\ )\*(?=\ [\w(\[])
    | (?<!/)/(?!/) | [+<>=^%&@]
    | [[\p{{Sm}}\p{{Sc}}\p{{So}}]--[|~+<>=]]
    """,
    regex.VERBOSE,
)
AFTER_LETTER = r"(?=\s?(?:$|[^\w\s]|\n|(?:because|since|as|is|for|denn|weil)\b))"
"""What follows the letter of a choice, unlike the article in `A dog`."""


def exact(text: str) -> str | None:
    """The text without white space at its ends."""
    return text.strip()


def normalised(text: str) -> str | None:
    """The words without case and articles; None for white space alone."""
    return " ".join(_words(text, articles=False)) or text.strip() or None


def _words(text: str, *, articles: bool) -> list[str]:
    """The words and symbols in lower case, with or without the articles before another word."""
    text = canonical(text[-MAX_CHARS:])
    text = MATH_DOLLARS.sub(r"\1", text)
    text = regex.sub(r"(?<=\w)['’](?=\w)", "", text)
    text = regex.sub(r"\b(?:\p{L}\.){2,9}", lambda match: match[0].replace(".", ""), text)
    text = regex.sub(
        r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)", lambda match: match[0].replace(",", ""), text
    )
    text = SUBTRACTION.sub(r"\1 ∖ ", regex.sub(r"(?<![\w.])\.(?=\d)", "0.", text))
    matches = list(TOKEN.finditer(text))
    words: list[str] = []
    for match, following in zip_longest(matches, matches[1:]):
        word = match[0].replace(" ", "")
        word = word.strip("_") or word
        if not articles and following and _is_article(text, match, following[0]):
            continue
        words.append(word.casefold())
    return words


def _is_article(text: str, match: "regex.Match[str]", following: str) -> bool:
    """True for an article before a word; `A` is one only where a sentence begins with it, and not
    in `Vitamin A is`."""
    word = match[0]
    if word.casefold() not in ARTICLES or not following[0].isalpha():
        return False
    if word != "A":
        return True
    before = text[: match.start()].rstrip(" *_\"'(")
    return following[0].islower() and (not before or before[-1] in ".!?:\n")


def items(text: str) -> str | None:
    """The normalised items of a list, each once, in alphabetical order."""
    # White space first: patterns that begin with any number of blanks take quadratic time.
    lines = (" ".join(line.split()) for line in text.splitlines())
    text = "\n".join(regex.sub(r"^(?:[-*•]|\d+[.)]) ", "", line) for line in lines if line)
    parts = regex.split(r"[;\n]|,(?!\d{3}\b)| (?:and|&) ", text.strip("[](){}"))
    forms = {form for part in parts if (form := normalised(part)) is not None}
    return " | ".join(sorted(forms)) or None


def contains(answer: str, truth: str) -> bool:
    """True where the words of the true answer stand in the answer, one after another."""
    for articles in (False, True):
        part, whole = _words(truth, articles=articles), _words(answer, articles=articles)
        # With its articles only where more than an article is asked for: `A` is not in `a dog`.
        is_meant = len(part) > articles
        if is_meant and f" {' '.join(part)} " in f" {' '.join(whole)} ":
            return True
    return bool(answer.strip()) and normalised(answer) == normalised(truth)


def choice(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letters of the choices that an answer names, `B` or `A, C`; None where that is open."""
    text = text[-MAX_CHARS:].strip()
    letters = ascii_uppercase[: len(choices) or 10]
    letter = rf"\(?([{letters}])\)?(?![\w'’])"
    several = rf"{letter}(?:\s?(?:,|;|&|/|and|und|or|oder|,\ ?and)\s?{letter})*"
    named = final_answer(text)
    for part in (named, text):
        plain = regex.sub(r"\\text\{([^{}]*)\}|[*_`$\"]", r"\1", part or "").strip()
        if regex.fullmatch(rf"\(?[{letters}]\)?[.):。]?", plain, regex.IGNORECASE):
            return regex.sub(r"\W", "", plain).upper()
        if part is not text and (match := regex.match(several + AFTER_LETTER, plain)):
            return _letters(match, letters)
        if match := regex.match(rf"\(?([{letters}])(?:[).:]|\s?[-–]\s|\s?\n)", plain):
            return match[1]
        if regex.fullmatch(rf"{several}\.?", plain):
            return _letters(regex.match(several, plain), letters)
    if bold := regex.findall(rf"\*\*\(?([{letters}])(?:[).:][^*\n]*)?\*\*", text):
        return bold[-1]
    spoken = regex.findall(rf"\b(?i:option|choice|answer|antwort)\s{letter}", text)
    if len(set(spoken)) == 1:
        return spoken[0]
    for part in (named, text):
        held = [index for index, each in enumerate(choices) if part and contains(part, each)]
        # `Paris` stands in `Paris, Texas` too, and the longer one is named.
        whole = [
            i for i in held if not any(i != j and contains(choices[j], choices[i]) for j in held)
        ]
        if len(whole) == 1:
            return letters[whole[0]]
    return None


def _letters(match: "regex.Match[str] | None", letters: str) -> str | None:
    if match is None or regex.search(r"\b(?:or|oder)\b|/", match[0]):
        return None
    return ", ".join(
        sorted({char for char in regex.findall(r"\b\w\b", match[0]) if char in letters})
    )


FORMS: Mapping[str, Callable[[str], str | None]] = {
    "exact": exact,
    "normalised": normalised,
    "contains": normalised,
    "number": number,
    "set": items,
    "choice": choice,
    "math": lambda text: normalised(final_answer(text) or text),
}
"""The rules by name, as `--score` takes them, with the text that equal answers share: votes are
counted by it."""


def same(rule: str, answer: str, truth: str, choices: Sequence[str] = ()) -> bool:
    """True where an answer equals the true one by a rule of `FORMS`.

    Raises:
        MissingError: the rule needs a package that is not installed.
    """
    match rule:
        case "number":
            return same_number(answer, truth)
        case "contains":
            return contains(answer, truth)
        case "math":
            return MATH.same(answer[-MAX_CHARS:], truth)
        case "choice":
            letters = choice(answer, choices)
            return letters is not None and letters == choice(truth, choices)
        case _:
            form = FORMS[rule](truth)
            if form is None:
                return False
            # A currency that the true answer doesn't name is not asked for.
            plain = MATH_DOLLARS.sub(r"\1", answer)
            plain = regex.sub(r"[$€£¥]\s?(?=-?\.?\d)|(?<=\d)\s?[$€£¥]", "", plain)
            bare = rule == "normalised" and not regex.search(r"\p{Sc}", truth)
            return form == FORMS[rule](plain if bare else answer)


def can_compare(rule: str, truth: str, choices: Sequence[str] = ()) -> bool:
    """True where a rule can compare answers with this true one."""
    if rule == "number":
        return one_number(truth) is not None
    if rule == "choice":
        return choice(truth, choices) is not None
    return FORMS[rule](truth) is not None


def fitting_rule(pairs: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> tuple[str, int]:
    """(rule, right answers) of the rule that calls most answers right; `pairs` are (answer, true
    answers, choices)."""

    def right(rule: str) -> int:
        return sum(
            any(can_compare(rule, truth, c) and same(rule, answer, truth, c) for truth in truths)
            for answer, truths, c in pairs
        )

    rules = [rule for rule in FORMS if rule not in ("math", "set")]
    return max(((rule, right(rule)) for rule in rules), key=lambda pair: pair[1])
