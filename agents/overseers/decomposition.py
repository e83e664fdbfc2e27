"""What is wrong with a proposed decomposition, found by rules, without a model.

A copy sees one sub-question and nothing else. So a sub-question must hold the names, numbers and
quotations that it needs, or take them by `{i}`. Five ways in which prompted models fail at that:

    loses    nothing of what the question is about reaches any copy
    invents  as `loses`, and what the sub-questions name instead stands nowhere in the question
    repeats  the question, or an answered sub-question, is asked again in about the same words
    dangles  "the problem", "these cities", "it" stand for nothing that the copy sees
    empty    a sub-question is about nothing ("What is the final answer?")

Not all that the question holds need be asked, since the overseer sees it again when it combines: a
batch must hold something of it, and of each enumeration ("Lima, Nairobi or Oslo") and each choice
("heavier, an elephant or a whale") something, and a number where sentences before the question give
several. What dangles is found in English only, choices by the word for "or" in a few languages, the
rest in any language. Lists of words decide, so the rules can be wrong; how often is measured in
`benchmarks/decompositions.py`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from reflux.agents.overseers.particulars import (
    REQUEST,
    TOKEN,
    UNSPACED,
    WH,
    Reading,
    keys_of,
    read,
)
from reflux.agents.prompts import last_question
from reflux.agents.types import REFERENCE, Ask, Exchange, SubQuestion

Kind = Literal["loses", "invents", "repeats", "dangles", "empty"]

SHOWN = 4
"""Lost or invented items that a message names."""
MIN_LIKENESS = 0.8
"""Share of words that a repetition has in common with what it repeats."""
MIN_SHARE, MAX_SHARE = 0.3, 3
"""Words of a question without particulars that a batch must hold: this share, but at most so
many."""

GENERAL = (
    r"(?:problem|question|puzzle|riddle|task|equation|expression|calculation|operation|statement|"
    r"passage|text|paragraph|sentence|document|article|list|set|sequence|table|answer|result|"
    r"solution|outcome|sum|total|difference|product|quotient|remainder|number|value|digit|term|"
    r"figure|amount|letter|word|phrase|name|continent|capital|place|person|man|woman|people|item|"
    r"option|choice|object|thing|event|one|two|three|pair|group|part|relation|relationship|couple|"
    r"operand|play|film|planet|river|element|trip|date)(?:e?s)?|"
    r"(?:stor|cit|countr|famil)(?:y|ies)"
)
PHRASE = re.compile(
    rf"\b(the|this|that|these|those|both|each|every)\s+(?:(?:given|following|above|previous|prior|"
    rf"first|second|third|fourth|fifth|last|next|other|final|same|two|three|four|five|six|"
    rf"remaining|original|initial|entire|whole|resulting|arithmetic|mathematical|math|current)\s+)"
    rf"{{0,3}}({GENERAL})\b"
    # What may follow makes the phrase definite: "the sum of", "the word that", "the number 7".
    r"(?!\s*(?:of|whose|that|which|who|whom|with|where|when|if|for|called|named|known|such)\b)"
    r"(?!\s*[:\"“'‘`«「(\[{]|\s+[-\d])"
    r"(?!\s+(?:in|at|on|between|from|to|by|after|before|as)\s+"
    r"(?!the\b|this\b|these\b|that\b|those\b|it\b|which\b)\w)",
    re.IGNORECASE,
)
"""A definite phrase with a general noun, with nothing after it that says which one is meant."""
LETTERS = re.compile(r"letter|word|digit|name", re.IGNORECASE)
NAMED = re.compile(
    r"\s+(?!(?:appear|occur|start|begin|end|contain|mean|has|have|is|in)s?\b)\w+", re.I
)
"""What follows "the word" where it is a word, as in "the word banana"."""
OF_QUESTION = re.compile(
    r"(?:problem|question|puzzle|riddle|equation|expression|passage|text|paragraph|list|"
    r"statement)s?|stor(?:y|ies)",
    re.IGNORECASE,
)
POINTING = re.compile(
    r"\b(?:the (?:former|latter|above)|the aforementioned|the (?:first|second|third|last|other)"
    r"(?=\s*[?.,]|\s*$)|(?:these|those|this)(?=\s*[?.,]|\s*$|\s+(?:is|are|was|were|has|have|lie|"
    r"lies|belong|belongs)\b)|each of (?:them|these|those)|(?:mentioned|listed|given|described) "
    r"(?:above|earlier|before))",
    re.IGNORECASE,
)
PRONOUN = re.compile(r"\b(?:it|its|they|them|their|he|she|his|her|him)\b", re.IGNORECASE)
INVERTED = re.compile(r"\b(?:is|are|was|were|does|do|did|has|have|can|will|would)\s+$", re.I)
IMPERSONAL = re.compile(
    r"\s+(?:takes?|costs?|means?|rain\w*|snow\w*|cold|hot|warm|possible|true|false|legal|illegal|"
    r"safe|better|best|easy|hard|difficult|important|necessary|likely|called|from|since|until)\b",
    re.IGNORECASE,
)
"""What follows an "it" that stands for nothing in particular."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a batch of sub-questions."""

    kind: Kind
    index: int | None
    """Position of the sub-question in the batch; None for the batch as a whole."""
    detail: str

    def __str__(self) -> str:
        subject = "the batch" if self.index is None else f"sub-question {self.index + 1}"
        return f"{subject} {self.detail}"


def decomposition_problems(
    question: str, transcript: Sequence[Exchange], batch: Ask
) -> tuple[Problem, ...]:
    """What is wrong with the batch as the next step on the question; empty for a sound one, and
    for a batch without sub-questions. Of a conversation only the last question counts."""
    question, asked = last_question(question), batch.subquestions
    if not asked:
        return ()
    lost = tuple(_loses(read(question), transcript, asked))
    one, other = _scripts(question), _scripts(*(sub.text for sub in asked))
    if lost and one and other and one.isdisjoint(other):
        return (Problem("loses", lost[0].index, "is in another language than the question"),)
    return (*_repeats(question, transcript, asked), *_dangles(question, asked), *lost)


def _scripts(*texts: str) -> set[str]:
    """The scripts of texts, such as `LATIN`; none where they have no letters."""
    letters = (unicodedata.name(c, "").split() for text in texts for c in text if c.isalpha())
    return {name[0] for name in letters if name}


def _is_prose(sub: SubQuestion) -> bool:
    """False for what a tool runs."""
    return not sub.to.startswith("tool:")


def _own(sub: SubQuestion) -> str:
    """What a sub-question says itself, without the answers that it takes."""
    return REFERENCE.sub(" ", sub.text)


def _repeats(
    question: str, transcript: Sequence[Exchange], asked: Sequence[SubQuestion]
) -> Iterator[Problem]:
    """The batch says nothing new, apart from sub-questions that need others."""
    free = [sub.text for sub in asked if not sub.needs and _is_prose(sub)]
    if len({tuple(_outline(text)) for text in free}) != 1:
        return
    whole = read(question)
    answered = [each.question for each in transcript if each.answer is not None]
    asks = [] if whole.facts else [whole.asks]
    if any(_is_same(free[0], text) for text in (question, *asks)) or (
        len(asked) == 1 and _is_same_sum(free[0], whole)
    ):
        yield Problem("repeats", 0, "repeats the question")
    elif any(_is_same(free[0], text) for text in answered):
        yield Problem("repeats", 0, "repeats an answered one")
    elif len(free) > 1:
        yield Problem("repeats", None, "asks the same several times")


def _outline(text: str) -> list[str]:
    """Keys of a text's words in order, behind the question words that decide what it asks."""
    wh = [match[0].casefold() for match in TOKEN.finditer(text) if match[0].casefold() in WH]
    return [*wh, *read(text).words]


def _is_same(text: str, other: str) -> bool:
    """Whether a text asks the same as another one, in about the same words."""
    one, two = set(_outline(text)), set(_outline(other))
    if not read(other).particulars.keys() <= one or _numbers(other) - _numbers(text):
        return False
    return len(one & two) >= MIN_LIKENESS * len(one | two) > 0


def _numbers(text: str) -> Counter[str]:
    """How often each number stands in a text: `2 + 4` is no repetition of `2 + 4 + 4`."""
    return Counter(key for key in read(text).words if key[0].isdigit())


def _is_same_sum(text: str, whole: Reading) -> bool:
    """Whether a text has all numbers of the question, with one word for another at most, as in
    "the product of 29 and 86" for "multiply 29 by 86"."""
    one, two = set(read(text).words), set(whole.words)
    numbers = [key for key in whole.particulars if key[0].isdigit()]
    kept = len(numbers) > 1 and whole.particulars.keys() <= one
    kept = kept and not _numbers(whole.asks) - _numbers(text)
    return kept and len(two - one) <= len(one - two) <= 1


def _dangles(question: str, asked: Sequence[SubQuestion]) -> Iterator[Problem]:
    known = _dangling(question).casefold()
    for index, sub in enumerate(asked):
        phrase = _dangling(sub.text) if _is_prose(sub) else ""
        if phrase and phrase.casefold() != known:
            yield Problem("dangles", index, f'dangles: "{phrase}" stands for nothing')
        elif not REFERENCE.search(sub.text) and not read(sub.text).words and read(question).words:
            yield Problem("empty", index, "is about nothing")


def _dangling(text: str) -> str:
    """The first phrase that refers to something the text does not say; empty if there is none.

    A `{i}` may be what a phrase refers to, but not the question that it was asked for.
    """
    filled = REFERENCE.search(text) is not None
    particulars = read(REFERENCE.sub(" ", text)).particulars
    for match in PHRASE.finditer(text):
        if not (filled and not OF_QUESTION.fullmatch(match[2])) and not _is_told(text, match):
            return " ".join(match[0].split())
    if filled:
        return ""
    if len(particulars) < 2 and (pointing := POINTING.search(text)):
        return " ".join(pointing[0].split())
    for match in PRONOUN.finditer(text):
        before = text[: match.start()]
        if IMPERSONAL.match(text, match.end()):
            continue
        antecedents = set(keys_of(before))
        if INVERTED.search(before) or len(before.split()) < 2:
            # "Which country is it in", "Translate it": a name would be an antecedent.
            antecedents &= particulars.keys()
        if not antecedents:
            return match[0]
    return ""


def _is_told(text: str, match: re.Match[str]) -> bool:
    """Whether the text says what a definite phrase stands for."""
    before, after = text[: match.start()], text[match.end() :]
    noun = re.escape(match[2])
    later = re.split(r"[.?!:。？！：]\s", after, maxsplit=1)[1:]
    return (
        len(read(text).particulars) >= 2
        or after.lstrip()[:1].isupper()
        or re.search(r"\bas\s*$", before, re.I) is not None
        or (LETTERS.fullmatch(match[2]) is not None and NAMED.match(after) is not None)
        or REQUEST.match(re.split(r"[.?!]\s", before)[-1] + match[0]) is not None
        or re.search(rf"\b(?:an?|which|what)\s+(?:\w+\s+)?{noun}\b", before, re.I) is not None
        or any(len(list(keys_of(rest))) >= 2 for rest in later)
    )


def _loses(
    whole: Reading, transcript: Sequence[Exchange], asked: Sequence[SubQuestion]
) -> Iterator[Problem]:
    """The batch as a whole holds too little of the question, and nothing that was answered."""
    held = {key for sub in asked for key in read(_own(sub)).words}
    said = " ".join(f"{each.question} {each.answer or ''}" for each in transcript)
    if not whole.words or held & set(keys_of(said)) or _holds_pieces(whole, asked):
        return
    index = 0 if len(asked) == 1 else None
    if not held & set(whole.particulars or whole.words):
        yield _lost(whole, asked, index)
    elif not transcript and (lost := _lost_part(whole, held, asked)):
        readings = [read(_own(sub)) for sub in asked] if whole.alternatives else []
        named = [(key, r) for r in readings for pair in r.alternatives for key in pair]
        if invented := [r.spelled.get(key, key) for key, r in named if key not in whole.words]:
            yield Problem("invents", index, f"invents {_quoted(invented)}, and loses {lost}")
        else:
            yield Problem("loses", index, f"loses {lost}")


def _lost_part(whole: Reading, held: Collection[str], asked: Sequence[SubQuestion]) -> str:
    """What a batch lost that holds something of the question; empty if it holds enough."""
    words = set(whole.words)
    # A word without spaces around it has several pairs of letters.
    count = sum(0.5 if UNSPACED.match(key) else 1 for key in words)
    if not whole.particulars and len(words & set(held)) < min(MAX_SHARE, ceil(MIN_SHARE * count)):
        return _listed(whole.words, whole)
    for group in whole.enumerations:
        # Without particulars, two words beside "and" may be no things: "pros and cons".
        is_sure = bool(whole.particulars) or len(group) > 2 or len(asked) == 1
        if is_sure and not set(held) & set(group):
            return _listed(group, whole)
    for pair in whole.alternatives:
        if not set(held) & set(pair):
            return _listed(pair, whole)
    numbers = [key for key in whole.particulars if key[0].isdigit()]
    given = [key for key in whole.facts if key in numbers]
    if len(given) > 1 and not set(held) & set(numbers):
        return _listed(given, whole)
    # "Who is Ethan?" leaves out what was told of him.
    bare = [sub for sub in asked if len(set(read(_own(sub)).words)) < 2 and not sub.needs]
    same = len(asked) == 1 and _is_same(asked[0].text, whole.asks)
    if len(whole.facts) > 1 and (2 * len(bare) >= len(asked) or same):
        return _listed(whole.facts, whole)
    return ""


def _holds_pieces(whole: Reading, asked: Sequence[SubQuestion]) -> bool:
    """Whether programs and formulas hold pieces of what the question holds: digits, syllables."""
    for sub in asked:
        text = _own(sub).casefold()
        if _is_prose(sub) and any(c.isalpha() for c in text):
            continue
        parts = re.findall(r"\d+|[^\W\d_]{2,}", text)
        if any(part in key or key in part for part in parts for key in whole.words):
            return True
    return False


def _lost(whole: Reading, asked: Sequence[SubQuestion], index: int | None) -> Problem:
    if not whole.particulars:
        return Problem("loses", index, "holds no word of the question")
    named = [item for sub in asked for item in read(_own(sub)).particulars.items()]
    invented = [text for key, text in named if key not in whole.words]
    lost = f"loses {_listed(whole.particulars, whole)}"
    if invented:
        return Problem("invents", index, f"invents {_quoted(invented)}, and {lost}")
    return Problem("loses", index, lost)


def _listed(keys: Collection[str], whole: Reading) -> str:
    return _quoted([(whole.spelled | whole.particulars).get(key, key) for key in keys])


def _quoted(texts: Sequence[str]) -> str:
    unique = list(dict.fromkeys(texts))
    more = f" and {len(unique) - SHOWN} more" if len(unique) > SHOWN else ""
    return ", ".join(f'"{text[:60]}"' for text in unique[:SHOWN]) + more
