"""What a text is about: its particulars, which nobody can guess, and the keys of its other words.

Works on any script and case. Words are compared by keys, which case, accents and endings do not
change; where no spaces stand between words, each pair of letters is a key.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WH = _words("who whom whose when where why how")
STOP = WH | _words(
    "a an the this that these those what which is are was were be been being am do does did done "
    "has have had having can could will would shall should may might must of in on at by for from "
    "to with into onto about as and or nor but not no than then there here it its they them their "
    "he she his her him we us our you your i my me if so such each every any all some both either "
    "neither one ones other another more most much many few less least very too also only just "
    "please let lets whats now up out over under between among during per via"
)
META = _words(
    "answer answers question questions problem problems solution solutions solve solving result "
    "results task tasks step steps final following given above below previous information "
    "calculate calculation calculations compute computation determine find finding identify get "
    "give state tell need needed needs required require necessary expression expressions equation "
    "equations operation operations arithmetic math mathematical mathematics value values evaluate "
    "evaluation explain describe show list statement puzzle perform process correct right true use "
    "used using method approach way ways first second third next last begin start started know "
    "reply respond output return sub subquestion subquestions simple simpler simplify help make "
    "think decompose order name"
)
"""Words that are about a question, and not about what it asks."""
FORMATS = _words("json yaml xml html csv markdown latex english yes no true false pass hh mm ss ok")
"""Words in capitals that tell how to answer."""
COUNTED = re.compile(
    r"\s*(?:short |brief |single )?(?:bullets?|points?|sentences?|words?|lines?|paragraphs?|"
    r"examples?|items?|ways|reasons|tips|steps|letters?|characters?|digits?|decimals?)\b",
    re.IGNORECASE,
)
"""What follows a number that tells how to answer."""

NO_SPACE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
UNSPACED = re.compile(f"[{NO_SPACE}]")
GRAMMAR = re.compile(
    r"什么|怎么|怎样|为什么|多少|哪里|还是|或者|以及|如果|因为|"
    r"[的地得了着过吗呢吧和与或及是在有哪个些谁几更最这那它他她们都也很多把被从到对于之\u3041-\u309f]+"
)
"""What joins words in Chinese and Japanese: particles, pronouns, question words, hiragana."""
MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
"""Vowel signs and accents of Hebrew, Arabic and the scripts of India, which `\\w` lacks."""
TOKEN = re.compile(
    rf"\d+(?:,\d{{3}})*(?:\.\d+)?(?!(?![{NO_SPACE}])\w)|[{NO_SPACE}]+|"
    rf"(?:(?![{NO_SPACE}])\w|[{MARKS}])+(?:['’][^\W\d_]+)?"
)
QUOTED = re.compile(
    r"\"([^\"\n]{1,200})\"|“([^”\n]{1,200})”|«([^»\n]{1,200})»|「([^」\n]{1,200})」|"
    r"`([^`\n]{1,200})`|(?<!\w)'([^'\n]{1,200})'(?!\w)"
)
SENTENCE = re.compile(r"(?:[^.?!。？！؟\n]|\.(?=\S))*[.?!。？！؟\n]*")
REQUEST = re.compile(
    r"\s*(?:please\s+)?(?:answer|reply|respond|return|output|provide|express)\b[^?]*$", re.I
)
"""A sentence that tells how to answer, where it is not the first."""
LIST_WORD = r"(?:and|or|und|oder|et|ou|y|o|e|и|или)"
BETWEEN = re.compile(
    rf"[\s'\"“”‘’()\[\]]*(?:[,;/&+−–*×<>=-]|\bvs\b\.?|\bversus\b|\b{LIST_WORD}\b)"
    rf"(?:\s*{LIST_WORD}\b)?(?:\s+(?:the|a|an))?[\s'\"“”‘’()\[\]$€£-]*",
    re.IGNORECASE,
)
"""What stands between two items of an enumeration."""
OR = re.compile(r"\W*(?:\b(?:or|oder|ou|o|или)\b)(?:\s+(?:the|an?|some))?\s*", re.IGNORECASE)
MAX_GAP, MAX_LEAD = 20, 200
"""Characters between two alternatives, and of what stands before them."""
COMPARED = re.compile(r"\b(?:more|less|most|least|[^\W\d_]{3,}(?:er|est))\b", re.IGNORECASE)
CHOSEN = re.compile(r"\b(?:which|who|what|whose)\b[^.?!]*[,:—-]\s*(?:the |an? |some )?$", re.I)
"""What stands before a choice: "Which is a mammal, a"."""


@dataclass(frozen=True)
class Reading:
    """What a text is about."""

    particulars: dict[str, str]
    """Numbers, names, quotations and code, by key, as they are written."""
    spelled: dict[str, str]
    """All words that are about something, by key, as they are written first."""
    words: tuple[str, ...]
    """Keys of all words that are about something, in order; the particulars among them."""
    enumerations: tuple[tuple[str, ...], ...]
    """Keys of the items of each enumeration in what is asked: of particulars, or of any words in a
    text without particulars."""
    alternatives: tuple[tuple[str, str], ...]
    """Keys of the common nouns on both sides of an "or" that what is asked has the copy choose
    from, as in "Is a whale or an elephant heavier?"; a predicate ("odd or even") is no choice."""
    asks: str
    """The sentences that end with a question mark; the whole text if none does."""
    facts: tuple[str, ...]
    """Keys of the particulars in the other sentences."""


@lru_cache(maxsize=256)
def read(text: str) -> Reading:
    """Read a text for what it is about."""
    asks, inside = _asking(text)
    tokens = list(TOKEN.finditer(text))
    capitals = _trusts_capitals(tokens)
    requests = [m.span() for m in SENTENCE.finditer(text) if m.start() and REQUEST.match(m[0])]
    words: list[str] = []
    spelled: dict[str, str] = {}
    particulars: dict[str, str] = {}
    spans: list[tuple[int, int, str]] = []
    others: list[tuple[int, int, str]] = []
    for match in tokens:
        keys = _keys(match[0])
        if any(start <= match.start() < end for start, end in requests):
            continue
        words += keys
        if len(keys) == 1:
            spelled.setdefault(keys[0], match[0])
        if keys and _is_particular(text, match, keys[0], capitals):
            particulars.setdefault(keys[0], match[0])
            spans.append((*match.span(), keys[0]))
        elif keys:
            others.append((*match.span(), keys[0]))
    for quote in QUOTED.finditer(text):
        for key in keys_of(quote[quote.lastindex or 0]):
            particulars.setdefault(key, quote[quote.lastindex or 0])
    listed = [span for span in (spans if particulars else others) if span[0] in inside]
    facts = tuple(key for left, _, key in spans if left not in inside)
    enumerations = tuple(_enumerations(text, listed))
    choices = tuple(_alternatives(text, [span for span in others if span[0] in inside]))
    return Reading(particulars, spelled, tuple(words), enumerations, choices, asks, facts)


def _asking(text: str) -> tuple[str, range]:
    """The sentences that ask, and the positions from the first to the last of them."""
    asking = [m for m in SENTENCE.finditer(text) if m[0].rstrip().endswith(("?", "？", "؟"))]
    if not asking:
        return text, range(len(text))
    return "".join(m[0] for m in asking), range(asking[0].start(), asking[-1].end())


def _trusts_capitals(tokens: Sequence[re.Match[str]]) -> bool:
    """False for a text with a capital on most words: there they name nothing."""
    words = [m[0] for m in tokens if m[0][0].isalpha() and m[0].casefold() not in STOP]
    return sum(word[0].isupper() for word in words) <= 0.8 * len(words) or len(words) < 4


def _is_particular(text: str, match: re.Match[str], key: str, capitals: bool) -> bool:
    """Whether a word is one that nobody can guess: a number, a name, code."""
    word = match[0]
    if key in FORMATS or (word.islower() and word.isalpha()):
        return False
    if _is_number(word):
        return COUNTED.match(text, match.end()) is None
    if any(c.isdigit() or c == "_" for c in word):
        return True
    if not (capitals and any(c.isupper() for c in word)):
        return False
    before = text[max(0, match.start() - 9) : match.start()].rstrip(" \t\"“'‘(*-")
    # The first word of a sentence has a capital whatever it is.
    return any(c.isupper() for c in word[1:]) or (bool(before) and before[-1] not in ".?!。？！؟\n")


def _enumerations(text: str, spans: Sequence[tuple[int, int, str]]) -> Iterator[tuple[str, ...]]:
    """Neighbours with no more than a comma, `or`, a sign between them; a name may be of several
    words."""
    group: list[str] = []
    is_list = False
    for (_, end, key), (start, _, following) in pairwise([*spans, (len(text) + 9, 0, "")]):
        gap = text[end:start]
        if start <= len(text) and (not gap.strip() or BETWEEN.fullmatch(gap)):
            group = group or [key]
            group.append(following)
            is_list = is_list or bool(gap.strip())
            continue
        if is_list:
            yield tuple(group)
        group, is_list = [], False


def _alternatives(text: str, spans: Sequence[tuple[int, int, str]]) -> Iterator[tuple[str, str]]:
    """Neighbours with an "or" between them, where the text compares or lists them."""
    compared = {match.span() for match in COMPARED.finditer(text)}
    for (start, end, key), (begin, stop, other) in pairwise(spans):
        if begin - end > MAX_GAP or not OR.fullmatch(text, end, begin):
            continue
        is_listed = CHOSEN.search(text, max(0, start - MAX_LEAD), start)
        if (compared or is_listed) and compared.isdisjoint({(start, end), (begin, stop)}):
            yield key, other


def keys_of(text: str) -> Iterator[str]:
    """Keys of the words of a text that are about something, in order."""
    for match in TOKEN.finditer(text):
        yield from _keys(match[0])


@lru_cache(maxsize=8192)
def _keys(word: str) -> tuple[str, ...]:
    """Keys of a word; of a text without spaces, its pairs of letters that lie in one word, as far
    as grammar tells."""
    if UNSPACED.match(word):
        parts = [part for part in GRAMMAR.split(word) if part]
        parts = [part for part in parts if len(part) > 1] or parts or [word]
        return tuple(part[i : i + 2] for part in parts for i in range(max(1, len(part) - 1)))
    if word.casefold() in STOP or word.casefold() in META or not (key := _key(word)):
        return ()
    return (key,)


def _is_number(word: str) -> bool:
    return word.replace(",", "").replace(".", "").isdecimal()


def _key(word: str) -> str:
    """What a word shares with its other forms: without case, accents, plural, and what follows the
    sixth letter; of a number, its value."""
    if _is_number(word):
        digits = "".join(c if c == "." else str(unicodedata.decimal(c)) for c in word if c != ",")
        whole, _, fraction = digits.partition(".")
        fraction = fraction.rstrip("0")
        return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
    plain = unicodedata.normalize("NFKD", word.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"['’]\w+$|(?<=\d)(?:st|nd|rd|th)$", "", plain)
    if plain.endswith("ies") and len(plain) > 4:
        plain = plain[:-3] + "y"
    elif plain.endswith("s") and not plain.endswith("ss") and len(plain) > 3:
        plain = plain[:-1]
    return plain[:6]
