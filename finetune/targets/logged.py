"""Log-probabilities on record as targets: texts of tokens, found again in the student's tokenizer.

A record names tokens by their text. Where the same reply falls into other tokens, the record is of
another tokenizer, and its distributions say nothing of the student's: that is refused.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from reflux.agents.errors import UsageError
from reflux.finetune.data.encoding import IGNORED

NO_LOG = "without log-probabilities"
OTHER_TEXT = "whose log-probabilities are of another text"


class LoggedTokens:
    """Finds the tokens of a record among those of a tokenizer."""

    def __init__(self, tokenizer: Any, top_k: int | None) -> None:
        self._tokenizer, self._top_k = tokenizer, top_k
        self._foreign: list[tuple[int, str]] = []
        self._read = 0

    @cached_property
    def _texts(self) -> list[str]:
        """The text of every token; special ones are empty."""
        ids = [[token] for token in range(len(self._tokenizer))]
        return self._tokenizer.batch_decode(ids, skip_special_tokens=True)

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        """Tokens by their text, without those that share one, such as pieces of a character."""
        ids: dict[str, int] = {}
        shared: set[str] = {""}
        for token, text in enumerate(self._texts):
            shared.update([text] if text in ids else [])
            ids[text] = token
        return {text: token for text, token in ids.items() if text not in shared}

    def add(self, feature: dict[str, Any] | None, row: Mapping[str, Any], index: int) -> str:
        """Add a row's distributions to its feature; why it has none, or an empty text."""
        logged = row.get("logged")
        if feature is None or not logged:
            return NO_LOG
        text = "".join(token for token, _, _ in logged)
        if text.strip() != str(row["completion"][-1].get("content")).strip():
            return OTHER_TEXT
        self._read += 1
        counted = [i for i, label in enumerate(feature["labels"]) if label != IGNORED]
        tokens = [feature["labels"][i] for i in counted]
        lead = 0  # A template may begin the reply with tokens of its own, such as empty thoughts.
        while lead < len(tokens) and self._texts[tokens[lead]] != logged[0][0]:
            lead += 1
        for place, label, (token, logprob, top) in zip(
            counted[lead:], tokens[lead:], logged, strict=False
        ):
            if self._texts[label] != token:
                self._foreign.append((index, text))
                return "of another tokenizer"
            ids, logprobs = self._listed(label, logprob, top)
            feature["graded"][place] = 1
            feature["top_ids"].append(ids)
            feature["top_logprobs"].append(logprobs)
        if not feature["top_ids"]:
            self._foreign.append((index, text))
        return ""

    def _listed(
        self, token: int, logprob: float, top: Sequence[Sequence[Any]]
    ) -> tuple[list[int], list[float]]:
        """(ids, log-probabilities) of the likeliest tokens; the one that was drawn is among them
        where nothing else is."""
        found = {self._ids[text]: value for text, value in top[: self._top_k] if text in self._ids}
        if not found or (token not in found and (self._top_k is None or len(found) < self._top_k)):
            found[token] = logprob
        return list(found), list(found.values())

    def check(self) -> None:
        """Check that the record is of this tokenizer.

        Raises:
            UsageError: replies fall into other tokens.
        """
        if self._foreign:
            index, text = self._foreign[0]
            raise UsageError(
                f"the log-probabilities of {len(self._foreign)} of {self._read} rows are of "
                f"another tokenizer than the base's, such as those of row {index}, {text[:80]!r}: "
                "take source: teacher or kind: votes, or leave these rows out"
            )
