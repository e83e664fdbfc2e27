"""What texts of rows must not hold: a base's own markers, secrets, personal data.

Secrets are those that the record leaves out, too. Personal data is what its own form proves: mail
addresses, international telephone numbers (`phonenumbers`, Google's libphonenumber), IP addresses,
card numbers with a valid check digit (Luhn, ISO/IEC 7812) and IBANs (ISO 7064, mod 97-10). Names
and street addresses stay: no form tells them from other words.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import phonenumbers

from reflux.agents.redaction import PLACEHOLDER, redact
from reflux.finetune.data.conversations import with_arguments
from reflux.finetune.data.rows import Row

MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]*::?[0-9A-Fa-f:]+)(?![\w:])"
)
CARD = re.compile(r"(?<!\d)(?<!\d\.)\d(?:[ -]?\d){12,18}(?!\.?\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")


def without_personal_data(text: str, found: Counter[str]) -> str:
    """A text with placeholders for secrets and personal data, which are counted by kind."""

    def hide(pattern: re.Pattern[str], name: str, holds: Callable[[str], bool], text: str) -> str:
        def replaced(match: re.Match[str]) -> str:
            if not holds(match[0]):
                return match[0]
            found[name] += 1
            return f"[{name}]"

        return pattern.sub(replaced, text)

    clean = redact(text)
    found["secret"] += clean.count(PLACEHOLDER) - text.count(PLACEHOLDER)
    clean = hide(MAIL, "mail address", lambda mail: True, clean)
    clean = hide(IBAN, "IBAN", _is_iban, clean)
    clean = _without_numbers(clean, found)
    clean = hide(CARD, "card number", _is_card, clean)
    return hide(ADDRESS, "IP address", _is_address, clean)


def _without_numbers(text: str, found: Counter[str]) -> str:
    """Telephone numbers with a country's code; others are digits like any."""
    if "+" not in text:
        return text
    pieces: list[str] = []
    end = 0
    for match in phonenumbers.PhoneNumberMatcher(text, None):
        pieces += [text[end : match.start], "[telephone number]"]
        end = match.end
        found["telephone number"] += 1
    return "".join([*pieces, text[end:]])


def _is_card(text: str) -> bool:
    digits = [int(digit) for digit in text if digit.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return digits[0] in (3, 4, 5, 6) and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    plain = text.replace(" ", "")
    number = "".join(str(int(letter, 36)) for letter in plain[4:] + plain[:4])
    return int(number) % 97 == 1


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6 and text[0] not in "23fF":  # `a::b` is more often a name in C++.
        return False
    return not (address.is_loopback or address.is_unspecified)


def redacted_row(row: Row, found: Counter[str]) -> Row:
    """A row without secrets and personal data; what is replaced is counted by kind."""
    return _with_texts(row, lambda text: without_personal_data(text, found))


def _with_texts(row: Row, change: Callable[[str], str]) -> Row:
    completion = tuple(_changed(turn, change) for turn in row.completion)
    return replace(
        row,
        prompt=tuple(_changed(turn, change) for turn in row.prompt),
        completion=completion,
        logged=row.logged if completion == row.completion else (),
        teacher=tuple(_changed(turn, change) for turn in row.teacher),
        question=change(row.question),
        rejected=None if row.rejected is None else change(row.rejected),
    )


def _changed(turn: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    made = with_arguments({**turn, "content": change(turn["content"])}, change)
    if thoughts := turn.get("reasoning_content"):
        made["reasoning_content"] = change(thoughts)
    return made


class Markers:
    """The special tokens of a base inside texts, where they would end a turn or begin another."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """`tokens` as texts; see `markers_of`."""
        longest_first = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def find(self, row: Row) -> str | None:
        """The first marker in a row's texts; None where there is none."""
        matches = (self._pattern.search(text) for text in texts_of(row))
        return next((match[0] for match in matches if match), None)

    def escaped(self, row: Row) -> Row:
        """The row with a space behind the first character of every marker, so that the tokenizer
        reads it as text."""

        def change(text: str) -> str:
            while match := self._pattern.search(text):
                text = f"{text[: match.start() + 1]} {text[match.start() + 1 :]}"
            return text

        return _with_texts(row, change)


def markers_of(tokenizer: Any) -> Markers:
    """The special tokens of a tokenizer."""
    added = tokenizer.added_tokens_decoder.values()
    special = [token.content for token in added if token.special]
    return Markers([*special, *tokenizer.all_special_tokens])


def texts_of(row: Row) -> Iterator[str]:
    """Every text of a row that a template renders."""
    for turn in (*row.prompt, *row.teacher, *row.completion):
        yield turn["content"]
        yield from filter(None, [turn.get("reasoning_content")])
        for call in turn.get("tool_calls", ()):
            yield call["function"]["arguments"]
