"""What a training would learn from: rows by origin, how long they are, and what of them counts.

Lengths are counted and examples rendered by the base's own tokenizer and template, as in training.
Of many rows a sample spread over all of them is measured.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reflux.finetune.data.curation import Counts
from reflux.finetune.data.encoding import IGNORED, encode_rows, length_spread

MEASURED = 10_000
"""Rows whose tokens are counted, at most."""
PER_KIND = 2
MAX_KINDS = 12
"""Kinds of rows that are shown with examples."""
UNKNOWN = "–"

Labelled = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A row as `Row.train` gives it, and its provenance."""


@dataclass
class Example:
    """A row as the template renders it."""

    node: str
    source: str
    outcome: str
    trajectory: str
    tokens: int
    pieces: list[tuple[str, bool]]
    """Texts in order, and whether the loss counts them."""


@dataclass
class DataReport:
    """What a training would learn from."""

    base: str
    rows: int = 0
    sequences: int = 0
    """Of the measured rows: a row becomes several where the template renders earlier replies
    otherwise."""
    measured: int = 0
    groups: list[tuple[str, str, str, int]] = field(default_factory=list[tuple[str, str, str, int]])
    """(source, node, outcome, rows), most rows first."""
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    """`min`, `median`, `p95`, `max` and `sum` of a measured sequence; `counted` of all in the
    loss."""
    context: int | None = None
    """Tokens that the base takes."""
    too_long: int = 0
    """Measured sequences beyond it."""
    replies: int = 0
    with_tools: int = 0
    examples: list[Example] = field(default_factory=list[Example])
    read: int = 0
    """Rows before curation."""
    left_out: dict[str, int] = field(default_factory=dict[str, int])
    left_out_examples: dict[str, list[dict[str, str]]] = field(
        default_factory=dict[str, list[dict[str, str]]]
    )
    redacted: dict[str, int] = field(default_factory=dict[str, int])
    escaped: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        names = ("source", "node", "outcome", "rows")
        groups = [dict(zip(names, group, strict=True)) for group in self.groups]
        return {**asdict(self), "groups": groups}


def data_report(
    rows: Iterable[Labelled], n: int, tokenizer: Any, base: str, context: int | None, counts: Counts
) -> DataReport:
    """The report of `n` rows, in one pass.

    Raises:
        UsageError: the template cannot render a row, or leaves out tools.
    """
    report = DataReport(base, context=context, read=counts.seen)
    groups: Counter[tuple[str, str, str]] = Counter()
    shown: Counter[str] = Counter()
    lengths: list[int] = []
    counted = 0
    step = max(1, -(-n // MEASURED))
    for index, (row, about) in enumerate(rows):
        report.rows += 1
        values = (about.get(key) for key in ("source", "node", "outcome"))
        source, node, outcome = (str(value or UNKNOWN) for value in values)
        groups[source, node, outcome] += 1
        report.with_tools += bool(row.get("tools"))
        wants_example = shown[node] < PER_KIND and (node in shown or len(shown) < MAX_KINDS)
        if index % step and not wants_example:
            continue
        for sequence in encode_rows([row], tokenizer):
            length = len(sequence["input_ids"])
            report.sequences += 1
            lengths.append(length)
            counted += sum(label != IGNORED for label in sequence["labels"])
            report.too_long += context is not None and length > context
            pieces = _pieces(sequence, tokenizer)
            report.replies += sum(learned for _, learned in pieces)
            if wants_example and shown[node] < PER_KIND:
                shown[node] += 1
                trajectory = str(about.get("trajectory") or "")
                report.examples.append(Example(node, source, outcome, trajectory, length, pieces))
        report.measured += 1
    report.groups = [(*key, number) for key, number in groups.most_common()]
    report.tokens = {**length_spread(lengths), "counted": counted} if lengths else {}
    report.left_out = dict(counts.left_out.counts.most_common())
    report.left_out_examples = counts.left_out.examples
    report.redacted = {name: number for name, number in counts.redacted.items() if number}
    report.escaped = counts.escaped
    return report


def _pieces(sequence: Mapping[str, Sequence[int]], tokenizer: Any) -> list[tuple[str, bool]]:
    """The texts of a sequence between which what counts changes."""
    spans: list[tuple[list[int], bool]] = []
    for token, label in zip(sequence["input_ids"], sequence["labels"], strict=True):
        counts = label != IGNORED
        if not spans or spans[-1][1] != counts:
            spans.append(([], counts))
        spans[-1][0].append(token)
    return [(tokenizer.decode(ids), counts) for ids, counts in spans]
