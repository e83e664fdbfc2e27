"""Numbers in an answer: which one is meant as the answer, and what it is worth, as a fraction."""

import unicodedata
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from fractions import Fraction

import regex

MAX_CHARS = 200_000
"""A longer answer is read from its end."""
MAX_NUMBER_CHARS = 1_000
"""A longer number is equal to none."""
MAX_POWER = 400
"""Of a power that is computed, in digits."""
VOWEL_POINTS = regex.compile(
    r"[\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7\u0640\u064B-\u0652\u0670]"
)
BEFORE_FRACTION = regex.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
OTHER_DIGIT = regex.compile(r"[^\D0-9]")
SUPERSCRIPT = regex.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
OPERATORS = str.maketrans(
    {"−": "-", "–": "-", "﹣": "-", "－": "-", "≤": "<=", "≥": ">=", "≠": "!=", "×": "*", "÷": "/"}
)
CUE = regex.compile(
    r"(?:answer|result|final|option|choice|antwort|ergebnis|lösung|réponse|respuesta|risposta|resposta|"
    r"ответ|答案|答え|正解|选项|الجواب|الإجابة|उत्तर)['\"”*_]{0,4}\s{0,3}"
    r"(?:[:：=是为為は]|(?:is|are|(?:would|must|should|has to) be|ist|lautet|est|es|è|é|هو|هي|है)"
    r"\b:?)[*_\"'“(\[\s]{0,8}",
    regex.IGNORECASE,
)
HEADING = regex.compile(
    r"^[#*_ ]{1,9}(?:final )?(?:answer|result|antwort|ergebnis|答案)[*_: ]{0,9}\n+([^\n]+)",
    regex.IGNORECASE | regex.MULTILINE,
)
NOT_BUT = regex.compile(
    r"\bnot [^.!?\n]{1,60}?(?:\bbut\b(?! not)|[,;] (?:it is|it['’]s|rather)\b)", regex.IGNORECASE
)
"""What is ruled out, in `not 12 but 15`."""
WRITTEN_SUM = regex.compile(
    r"\D{0,20}[\d.,]+\s?(?:times|plus|minus|multiplied by|divided by|[*+/x-])\s"
    r".*?(?:\bis\b|\bequals\b|\bmakes\b|\bgives\b)"
)
PLAIN = r"-?[$€£]?\d[\d.,/]*%?"
IS_ANSWER = regex.compile(
    r"(?<![\w.,])(-?\$?\d[\d.,]*%?) (?:is|was|must be|would be) (?:the|my|our) "
    r"(?:final |correct |right )?(?:answer|result)\b",
    regex.IGNORECASE,
)
HEDGED = regex.compile(
    rf"(?<![\d.,^])({PLAIN})(?P<unit>\s\p{{L}}+)?"
    rf"(?:,?\s(?:or|oder|ou)\s(?:(?:maybe|perhaps|possibly|even)\s)?{PLAIN}(?(unit)(?P=unit)\b))+",
    regex.IGNORECASE,
)
"""Several numbers to choose from, as in `41 or 42 apples`."""
CITATION = regex.compile(r"(?<=[\w.%\]])\s?\[\d{1,3}(?:,\s?\d{1,3})*\]")
ASIDE = regex.compile(
    r"^\W{0,9}(?:confidence|certainty|note|source|remark|konfidenz|hinweis|quelle|置信度)\b.*$",
    regex.IGNORECASE | regex.MULTILINE,
)
CORE = (
    r"(?:\d{1,3}(?:\.\d{3}){1,9},\d+"  # 1.234,56
    r"|\d{1,3}(?:(?P<sep>[,'’_\ ])\d{3})(?:(?P=sep)\d{3}){0,9}(?:\.\d*)?(?![\d,])"  # 1,234.56
    r"|\d{1,2}(?:,\d{2}){1,9},\d{3}(?:\.\d+)?(?![\d,])"  # 1,00,000
    r"|(?<![(\[{,])\d+,\d{1,2}(?![\d,])"  # 3,5
    r"|\d+(?:\.\d*)?|\.\d+)"
)
NUMBER = regex.compile(
    r"(?<![\w^.])(?P<sign>(?<![\w)\]])-\s?(?=[\d.]))?\+?"
    rf"(?:(?P<whole>\d+)\ (?P<top>\d+)\ ?/\ ?(?P<low>\d+)|(?P<core>{CORE})"
    r"(?:[eE](?P<exp>[-+]?\d{1,3}))?(?:\s?\*\s?10\^\(?(?P<ten>-?\d{1,3})\)?|\^\(?(?P<pow>-?\d{1,9})\)?)?"
    r"(?:\s?/\s?(?P<div>\d+))?)(?!\d|[eE][-+]?\d)"
    r"(?P<pct>\s?(?:%|per\ ?cent|prozent))?"
    r"(?:\s(?P<scale>thousand|million|billion|trillion)\b|(?P<suffix>[kK]|(?-i:M)|[bm]n)(?!\w))?",
    regex.IGNORECASE,
)
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SUFFIXES = {"k": 3, "m": 6, "mn": 6, "bn": 9}
UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = {word: value for value, word in enumerate(UNITS)} | {
    word: 10 * value for value, word in enumerate(TENS, 2)
}
SPELLED = regex.compile(
    rf"\b(?:{'|'.join([*WORDS, *SCALES])})(?:(?:[ -]|\ and\ )(?:{'|'.join([*WORDS, *SCALES])}))*\b",
    regex.IGNORECASE,
)


def canonical(text: str) -> str:
    """Compatible characters, digits and operators in one form."""
    text = superscripts_as_powers(text)
    text = BEFORE_FRACTION.sub(" ", text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/").translate(OPERATORS)
    text = OTHER_DIGIT.sub(lambda match: str(unicodedata.digit(match[0], match[0])), text)
    return VOWEL_POINTS.sub("", text)


def superscripts_as_powers(text: str) -> str:
    return SUPERSCRIPT.sub(lambda match: "^" + match[0].translate(SUPERSCRIPTS), text)


def final_answer(text: str) -> str | None:
    """What a text names as its answer: in `\\boxed{…}`, after `####`, or after words such as
    "the answer is"; None where it names none."""
    for start in (text.rfind("\\boxed{"), text.rfind("\\fbox{")):
        if start >= 0 and (box := _braces(text[text.index("{", start) :])) is not None:
            return box
    if headings := HEADING.findall(text):
        return headings[-1].strip()
    if "####" in text and (line := text.rpartition("####")[2].strip()):
        return line.splitlines()[0]
    for cue in reversed(list(CUE.finditer(text))):
        if line := text[cue.end() :].strip():
            return line.splitlines()[0]
    return None


def _braces(text: str) -> str | None:
    """What stands between the first brace and the one that closes it."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[1:index]
    return None


@dataclass(frozen=True)
class Number:
    """A number as it is written."""

    value: Fraction
    is_percentage: bool
    factor: int = 1
    """Of a suffix that is perhaps a unit: 1,000 in `300K`."""


def numbers(text: str) -> list[Number | None]:
    """The numbers of a text; None for one without a value or of too many digits."""
    text = canonical(text)
    text = regex.sub(r"(?<![\d)] )\b(?:minus|negative) (?=\d)", "-", text, flags=regex.IGNORECASE)
    text = regex.sub(r"\\[dt]?frac\s?\{(-?[\d.]+)\}\s?\{(\d+)\}", r" \1/\2 ", text)
    text = regex.sub(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}", r"\1", text)
    text = regex.sub(
        r"\\times|\\cdot", "*", regex.sub(r"\\[,!;]|[{}$*](?=[,*{}$])|[$€£¥]", "", text)
    )
    text = regex.sub(r"\\(?=%)|[{}]|\*\*", "", text)
    return [_value(match) for match in NUMBER.finditer(text)]


def _value(match: "regex.Match[str]") -> Number | None:
    if len(match[0]) > MAX_NUMBER_CHARS:
        return None
    try:
        if match["whole"]:
            value = int(match["whole"]) + Fraction(int(match["top"]), int(match["low"]))
        else:
            value = Fraction(Decimal(_decimal(match["core"])))
            value *= Fraction(10) ** int(match["exp"] or 0) * Fraction(10) ** int(match["ten"] or 0)
            if power := int(match["pow"] or 0):
                if len(match["core"]) * abs(power) > MAX_POWER:
                    return None
                value **= power
            value /= int(match["div"] or 1)
    except (ArithmeticError, DecimalException, ValueError):
        return None
    value *= 10 ** SCALES.get((match["scale"] or "").casefold(), 0)
    factor = 10 ** SUFFIXES.get((match["suffix"] or "").casefold(), 0)
    return Number(-value if match["sign"] else value, bool(match["pct"]), factor)


def _spelled(text: str) -> list[Number]:
    """The numbers that a text writes in English words."""
    found: list[Number] = []
    for match in SPELLED.finditer(text):
        if match[0].casefold() == "one" and len(text.split()) > 2:
            continue  # A pronoun.
        total = part = 0
        for word in regex.split(r"[ -]", match[0].casefold()):
            if word == "hundred":
                part = 100 * (part or 1)
            elif word in SCALES:
                total, part = total + (part or 1) * 10 ** SCALES[word], 0
            else:
                part += WORDS.get(word, 0)
        found.append(Number(Fraction(total + part), is_percentage=False))
    return found


def _decimal(core: str) -> str:
    """`1.234,56`, `1,234.56`, `1 234` and `3,5` as Python writes them."""
    if regex.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", core) or regex.fullmatch(r"\d+,\d{1,2}", core):
        return core.replace(".", "").replace(",", ".")
    return regex.sub(r"[,'’_ ]", "", core)


def read_number(text: str) -> Number | None:
    """The number that a text names as its answer, or else its last one."""
    text = text[-MAX_CHARS:]
    named = NOT_BUT.sub("", final_answer(text) or "")
    # In `40 + 2 = 42, as 95% know` the answer is the first number after the last equals sign.
    for part in (WRITTEN_SUM.sub("", named.rpartition("=")[2], 1), named):
        if found := numbers(part):
            return None if _is_hedged(part, 0) else found[0]
    if match := IS_ANSWER.search(text):
        return numbers(match[1])[0]
    bold = [part for part in regex.findall(r"\*\*([^*\n]{1,60})\*\*", text) if _is_number(part)]
    if bold:
        return numbers(bold[-1])[0]
    body = CITATION.sub("", ASIDE.sub("", text))
    said = regex.sub(r"\b(?:not|rather than|instead of) (?=[-\d$])\S+", "", body)
    said = regex.sub(r"(?:\([^()]*\)|\[[^\[\]]*\p{L}[^\[\]]*\])\W*$", "", said)
    for part in (said, body, text):
        if found := numbers(part):
            return None if _is_hedged(part, -1) else found[-1]
    spelled = _spelled(named) or _spelled(body)
    return spelled[-1] if spelled else None


def _is_hedged(text: str, at: int) -> bool:
    """Whether the first number of a text, or its last one (`at` -1), is one of several different
    ones to choose from."""
    found = list(HEDGED.finditer(text))
    if not found:
        return False
    outside = text[found[-1].end() :] if at else text[: found[0].start()]
    several = [each for each in numbers(found[at][0]) if each is not None]
    values = {each.value / (100 if each.is_percentage else 1) for each in several}
    return len(values) > 1 and not regex.search(r"\d", outside)


def _is_number(text: str) -> bool:
    """True for a number with at most two words of unit."""
    return regex.fullmatch(r"\W{0,3}\d[\d.,/]*\s?%?(?:\s?\p{L}+){0,2}\W{0,3}", text) is not None


def number(text: str) -> str | None:
    """The number of an answer as a fraction in lowest terms."""
    read = read_number(text)
    return read and str(read.value * read.factor / (100 if read.is_percentage else 1))


def one_number(text: str) -> Number | None:
    """The number of a true answer, None where it holds several, as a date and a range do."""
    named = text.rpartition("####")[2]
    found = numbers(named)
    return found[0] if len(found) == 1 else None


def same_number(answer: str, truth: str) -> bool:
    one, other = read_number(answer), one_number(truth)
    if one is None or other is None:
        return False
    if one.is_percentage == other.is_percentage or one.value == other.value:
        # `300K` are 300 kelvin or 300,000.
        return not {one.value, one.value * one.factor}.isdisjoint(
            (other.value, other.value * other.factor)
        )
    percentage, plain = (one, other) if one.is_percentage else (other, one)
    return percentage.value == plain.value * 100
