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

from reflux.graphs.evals.scoring.math_worker import MATH
from reflux.graphs.evals.scoring.mathematics import (
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
APOSTROPHE = regex.compile(r"(?<=\w)['’](?=\w)")
INITIALS = regex.compile(r"\b(?:\p{L}\.){2,9}")
THOUSANDS = regex.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")
BARE_POINT = regex.compile(r"(?<![\w.])\.(?=\d)")
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
AFTER_LETTER = (
    rf"(?=\s?(?:$|[^\w\s]|\n|[{UNSPACED}\p{{Hangul}}]|(?:because|since|as|is|it|for|denn|weil)\b))"
)
"""What follows the letter of a choice, unlike the article in `A dog`."""
BEFORE_CHOICE = (
    r"(?:(?<!\w)(?:(?<!not )(?:choose|pick|select)|chose|go with|so|thus|hence|therefore|it['’]?s|"
    r"(?:it|answer) (?:is|(?:must|would|should|has to) be))|选择?|選択?|→|⇒|=>)"
    r"[,:：]?\s?(?:(?:option|choice|answer)\s)?"
)
AFTER_CHOICE = (
    r"(?:\s(?:is|seems|looks|must be|would be)\s(?:the\s)?(?:only |most |best )?"
    r"(?:correct|right|true|best|better|answer|accurate|appropriate)\b"
    r"|\sremains\b|[).:]?[^\n✗✘❌☒]{0,80}?[✓✔✅☑]|[).:]?\s?(?:[Yy]es\b|[Cc]orrect\b))"
)
BEFORE_WRONG = (
    r"(?:\b(?:not|neither|nor|nicht|than|instead of|unlike|except|eliminate|exclude|reject|"
    r"rule out)|n['’]t|不是|排除)(?:\s(?:be|choose|pick|select|options?|choices?|answers?))?\s?"
)
AFTER_WRONG = (
    r"(?::?\s(?:(?:is|are|was|seems?|can be)\s)?(?:not|no|wrong|incorrect|false|ruled out|"
    r"eliminated|excluded)\b|\s?[✗✘❌☒]|\s(?:is|are|was|does|can)n['’]t\b|\scannot\b|不|错)"
)
PARTICLE = (
    r"(?:은|는|이|가|을|를|의|에|에서|와|과|로|으로|도|만|이다|입니다|이에요|예요|였다|이었다)?"
)
"""What Korean writes behind a word, without a space."""
UNIT = r"(?:°?[CFK]|[kcmµn]?[gmslLVAW]|[kMGT]?(?:B|Hz|b)|min|h|kWh|px|pt|ml|mL|USD|EUR)"


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
    text = APOSTROPHE.sub("", text)
    text = INITIALS.sub(lambda match: match[0].replace(".", ""), text)
    text = THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = SUBTRACTION.sub(r"\1 ∖ ", BARE_POINT.sub("0.", text))
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
    # `1024kg` holds 1024; `Paris's` and the Turkish `Ankara'dır` hold the name before it.
    answer = regex.sub(rf"(?<![\w.,])(\d[\d.,]*)(?={UNIT}(?!\w))", r"\1 ", answer[-MAX_CHARS:])
    stems = regex.sub(r"(?<=\p{L}{3})['’]\p{Ll}{1,4}(?!\w)", "", answer)
    # French leaves out the vowel of a short word: `l'Élysée` holds the name behind it.
    stems = regex.sub(r"(?<!\w)(?:[cdjlmnst]|qu)['’](?=\p{L}{2})", "", stems, flags=regex.I)
    for text, articles in ((answer, False), (answer, True), (stems, False)):
        part, whole = _words(truth, articles=articles), _words(text, articles=articles)
        # With its articles only where more than an article is asked for: `A` is not in `a dog`.
        if len(part) <= articles:
            continue
        words, text = " ".join(part), f" {' '.join(whole)} "
        if f" {words} " in text:
            return True
        is_korean = regex.search(r"\p{Hangul}$", words)
        if is_korean and regex.search(rf" {regex.escape(words)}{PARTICLE} ", text):
            return True
    return bool(answer.strip()) and normalised(answer) == normalised(truth)


def choice(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letters of the choices that an answer names, `B` or `A, C`; None where that is open."""
    text = regex.sub(r"</?(?!\p{Lu}>)\w{1,9}>", "", text[-MAX_CHARS:]).strip()
    letters = ascii_uppercase[: len(choices) or 10]
    letter = rf"\(?([{letters}])\)?(?![\p{{Latin}}\p{{N}}_'’])"
    several = rf"{letter}(?:\s?(?:,|;|&|/|and|und|or|oder|,\ ?and)\s?{letter})*"
    named = final_answer(text)
    chosen = _last(rf"(?i:{BEFORE_CHOICE}){letter}{AFTER_LETTER}", text)
    labels = regex.findall(rf"^\W{{0,3}}([{letters}])[).:] ", text, regex.MULTILINE)
    right = set(regex.findall(rf"(?<!\w){letter}{AFTER_CHOICE}", text))
    if len(set(labels)) > 1 and len(right) == 1 and named is None:
        return right.pop()
    # Where a text goes through the choices, it names one at the end.
    ends = [text.splitlines()[-1], chosen] if len(set(labels)) > 1 else []
    for part in (named, *ends, text):
        plain = regex.sub(r"\\(?:text|math)\w*\{([^{}]*)\}|[*_`$\"]", r"\1", part or "")
        plain = regex.sub(r"^(?:\[(.*)\]|<(.*)>|'(.*)')$", r"\1\2\3", plain.strip())
        plain = regex.sub(r"^(?:option|choice) (?=\()", "", plain, flags=regex.IGNORECASE)
        plain = regex.sub(r"^\(([a-z])\)", lambda match: f"({match[1].upper()})", plain)
        if regex.fullmatch(rf"\(?[{letters}]\)?[.):。]?", plain, regex.IGNORECASE):
            return regex.sub(r"\W", "", plain).upper()
        if part is not text and (match := regex.match(several + AFTER_LETTER, plain)):
            return _letters(match, letters)
        if match := regex.match(rf"\(?([{letters}])(?:[).:]|\s?[-–]\s|\s?\n)", plain):
            is_wrong = regex.match(r"[^\n.;]*\b(?:wrong|incorrect|false)\b", plain)
            return chosen if is_wrong and chosen else match[1]
        if regex.fullmatch(rf"{several}\.?", plain):
            return _letters(regex.match(several, plain), letters)
    if bold := regex.findall(rf"\*\*\(?([{letters}])(?:[).:][^*\n]*)?\*\*", text):
        return bold[-1]
    rest = regex.sub(rf"(?i:{BEFORE_WRONG}){several}|{several}{AFTER_WRONG}", " ", text)
    mention = rf"(?<![\p{{Latin}}\p{{N}}_'’]){several}(?:(?<=[^AI])|{AFTER_LETTER})"
    groups = [match[0] for match in regex.finditer(mention, rest)]
    left = {char for group in groups for char in regex.findall(rf"[{letters}]", group)}
    for found in (right, {chosen} - {None}, left):
        if len(found) == 1:
            return found.pop()
    for part in (named, text):
        held = [index for index, each in enumerate(choices) if part and contains(part, each)]
        # `Paris` stands in `Paris, Texas` too, and the longer one is named.
        whole = [
            i for i in held if not any(i != j and contains(choices[j], choices[i]) for j in held)
        ]
        if len(whole) == 1:
            return letters[whole[0]]
    return None


def _last(pattern: str, text: str) -> str | None:
    found = regex.findall(pattern, text)
    return found[-1] if found else None


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
