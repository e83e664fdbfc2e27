"""Rows with soft targets as sequences: the student's, and the teacher's, whose reply is the same.

    student   question                       reply   the loss counts the reply's tokens
    teacher   question and sub-answers       reply   and takes each one's distribution from here

The prompts differ in length, so no position is shared: the n-th counted token of one sequence
belongs to the n-th counted token of the other. A sequence that a length limit cuts loses its end,
and the other learns what is left of the reply from the text alone.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch

from reflux.agents.errors import UsageError
from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.data.encoding import IGNORED, REFUSALS, Encoded, encode, unrenderable
from reflux.finetune.targets.logged import LoggedTokens
from reflux.finetune.train.passes import cut_rows, spans

Row = Mapping[str, Any]
Feature = dict[str, Any]
"""`input_ids`, `labels` and `graded` (1 where a token has a distribution), each (tokens,);
`weight`; `teacher_ids` and `teacher_labels`, empty without a teacher; `top_ids` and
`top_logprobs`, one list for each graded token, empty without a record."""


@dataclass
class SoftRows:
    """Rows as features, and what became of them."""

    tokenizer: Any
    targets: TargetConfig
    limit: int | None
    """Maximum tokens of a student's sequence."""
    context: int | None
    """Maximum tokens of the model, which limits the teacher."""
    seen: Counter[str] = field(default_factory=Counter[str])
    """`rows`, those that are `graded`, and the reasons for which others learn their text alone."""

    def features(self, rows: Iterable[Row]) -> Iterator[Feature]:
        """The features of all rows, in order.

        Raises:
            UsageError: log-probabilities are of another tokenizer, a row cannot be rendered, or no
                row has what the targets need.
        """
        logged = LoggedTokens(self.tokenizer, self.targets.top_k)
        for index, row in enumerate(rows):
            try:
                sequences = encode(row, self.tokenizer)
                seen_by = self._of_teacher(row, sequences)
            except REFUSALS as error:
                raise unrenderable(index, row, error) from error
            for sequence, other in zip(sequences, seen_by, strict=True):
                made = self._feature(row, sequence, other)
                if self.targets.needs_log:
                    self.seen[logged.add(made, row, index) or "graded"] += 1
                if made is not None:
                    yield made
        logged.check()
        self._check()

    def _check(self) -> None:
        """Check that some row has a distribution, where the targets need one.

        Raises:
            UsageError: none has.
        """
        if self.seen["graded"] or not (self.targets.needs_teacher or self.targets.needs_log):
            return
        of_log = "no row has log-probabilities: record the calls with them (a run does so from its "
        of_log += "beginning, an endpoint needs `logprobs`), or take source: teacher"
        of_teacher = "no row has sub-answers for a teacher to read: only answers of divided "
        of_teacher += "questions have"
        why = of_log if self.targets.needs_log else of_teacher
        raise UsageError(f"targets {self.targets.kind}: {why}; kind: hard learns the texts")

    @property
    def note(self) -> str:
        """In words."""
        rows, graded = self.seen["rows"], self.seen["graded"]
        if not (self.targets.needs_teacher or self.targets.needs_log):
            return f"{self.targets.kind} targets of {rows:,} rows"
        others = {key: n for key, n in self.seen.items() if key not in ("rows", "graded") and n}
        why = ", ".join(f"{n:,} {key}" for key, n in others.items())
        rest = f"; by their text alone: {why}" if why else ""
        return f"{graded:,} of {rows:,} rows have the distributions of their tokens{rest}"

    def _of_teacher(self, row: Row, sequences: Sequence[Encoded]) -> Sequence[Encoded | None]:
        """The sequences that the teacher reads; None for each that it cannot grade."""
        nothing = [None] * len(sequences)
        if not self.targets.needs_teacher:
            return nothing
        if not row.get("teacher"):
            self.seen["without sub-answers"] += len(sequences)
            return nothing
        found = encode({**row, "prompt": row["teacher"]}, self.tokenizer)
        if [_counted(one) for one in found] != [_counted(one) for one in sequences]:
            self.seen["whose reply the template renders otherwise behind sub-answers"] += 1
            return nothing
        self.seen["graded"] += len(sequences)
        return found

    def _feature(self, row: Row, sequence: Encoded, other: Encoded | None) -> Feature | None:
        """The feature of one sequence; None where the limit leaves nothing of its reply."""
        self.seen["rows"] += 1
        ids, labels = sequence["input_ids"][: self.limit], sequence["labels"][: self.limit]
        counted = [index for index, label in enumerate(labels) if label != IGNORED]
        if not counted:
            self.seen["that a length limit leaves no reply"] += 1
            return None
        teacher_ids: list[int] = []
        teacher_labels: list[int] = []
        graded = [0] * len(ids)
        if other is not None:
            teacher_ids = other["input_ids"][: self.context]
            theirs = other["labels"][: self.context]
            places = [index for index, label in enumerate(theirs) if label != IGNORED]
            places = places[: len(counted)]
            for index in counted[: len(places)]:
                graded[index] = 1
            teacher_labels = [IGNORED] * len(teacher_ids)
            for index in places:
                teacher_labels[index] = theirs[index]
            if not places:
                teacher_ids, teacher_labels = [], []
        return {
            "input_ids": ids,
            "labels": labels,
            "graded": graded,
            "weight": float(row.get("weight", 1.0)),
            "teacher_ids": teacher_ids,
            "teacher_labels": teacher_labels,
            "top_ids": [],
            "top_logprobs": [],
        }

    def dataset(self, rows: Sequence[Row], folder: Path) -> datasets.Dataset:
        """The features of rows: of a list in memory, of anything else in files of a folder."""
        if isinstance(rows, list | tuple):
            return datasets.Dataset.from_list(list(self.features(rows)))
        made: Any = datasets.Dataset.from_generator(
            lambda: self.features(rows), cache_dir=str(folder), fingerprint=uuid.uuid4().hex
        )
        return made


def _counted(sequence: Encoded) -> list[int]:
    """The tokens that the loss counts."""
    return [label for label in sequence["labels"] if label != IGNORED]


@dataclass(frozen=True)
class SoftCollator:
    """Features as a batch: what TRL's trainer takes, and the rest under `soft`."""

    padding: int
    """The token that fills rows up; no loss counts it."""

    def __call__(self, features: Sequence[Feature]) -> dict[str, Any]:
        """`soft` holds `weights` and `graded` (rows, tokens), and where there is one the
        `teacher`'s batch of the rows that it grades, or `top_ids` and `top_logprobs` (graded
        tokens, k)."""
        batch: dict[str, Any] = self.padded([(f["input_ids"], f["labels"]) for f in features])
        graded = _filled([f["graded"] for f in features], 0)
        weights = torch.tensor([f["weight"] for f in features])[:, None].expand(graded.shape)
        soft: dict[str, Any] = {"weights": weights, "graded": graded.bool()}
        taught = [(f["teacher_ids"], f["teacher_labels"]) for f in features if f["teacher_ids"]]
        if taught:
            soft["teacher"] = self.padded(taught)
        if tops := [top for f in features for top in f["top_ids"]]:
            soft["top_ids"] = _filled(tops, -1)
            logprobs = [top for f in features for top in f["top_logprobs"]]
            soft["top_logprobs"] = _filled(logprobs, 0.0)
        return {**batch, "soft": soft}

    def padded(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        """Sequences and their labels, filled up at the right."""
        return {
            "input_ids": _filled([ids for ids, _ in rows], self.padding),
            "labels": _filled([labels for _, labels in rows], IGNORED),
            "attention_mask": _filled([[1] * len(ids) for ids, _ in rows], 0),
        }


def soft_passes(batch: Mapping[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """A collated batch in parts of at most `limit` of the student's tokens, in order."""
    plain = {key: value for key, value in batch.items() if key != "soft"}
    soft = batch["soft"]
    for start, end in spans(plain["attention_mask"], limit):
        before, here = soft["graded"][:start], soft["graded"][start:end]
        lines = {**plain, "weights": soft["weights"], "graded": soft["graded"]}
        part = cut_rows(lines, start, end)
        made = {key: part.pop(key) for key in ("weights", "graded")}
        if "teacher" in soft and bool(here.any()):
            first = int(before.any(1).sum())
            made["teacher"] = cut_rows(soft["teacher"], first, first + int(here.any(1).sum()))
        elif "top_ids" in soft:
            tokens = slice(int(before.sum()), int(before.sum() + here.sum()))
            made |= {key: soft[key][tokens] for key in ("top_ids", "top_logprobs")}
        yield {**part, "soft": made}


def _filled(rows: Sequence[Sequence[float]], value: float) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
