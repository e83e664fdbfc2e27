"""Options of `reflux distill` that choose rows, and what is done to the rows before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from reflux import cli

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from reflux.agents.errors import UsageError
    from reflux.finetune.data.recorded import RowsBy
    from reflux.graphs.evals.questions.files import read_questions

    if TYPE_CHECKING:
        from reflux.finetune.data.curation import Balance, Curation

Where = Annotated[
    str,
    typer.Option(
        "--where",
        help='Recorded calls to learn from, as an expression of SQL: "score >= 0.8 and node = '
        "'plan'\". --where help lists the columns.",
        metavar="SQL",
    ),
]
By = Annotated[
    Literal["calls", "trajectories", "flat", "roles"] | None,
    typer.Option(
        "--rows",
        help="What a row is: a call, a whole trajectory, its question and answer, or a call by its "
        "role in a tree. Default: calls, where --where is given.",
    ),
]
Reasoning = Annotated[
    Literal["drop", "keep"], typer.Option("--reasoning", help="What was thought before a reply.")
]
Unfinished = Annotated[bool, typer.Option("--unfinished", help="Also trajectories without an end.")]
Near = Annotated[
    float | None,
    typer.Option(
        "--near",
        help="Similarity from which on a row is a duplicate; 0 keeps all. Default: 0.9 of recorded "
        "calls.",
        min=0,
        max=1,
    ),
]
BalanceBy = Annotated[
    str,
    typer.Option(
        "--balance",
        help="As many rows of each node, outcome or source as of the rarest; node:3 allows three "
        "times as many.",
        metavar="COLUMN[:RATIO]",
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against", help="Questions of an evaluation, none of which may be in a row.",
        metavar="FILE",
    ),
]  # fmt: skip
Redact = Annotated[
    bool,
    typer.Option(
        "--redact", help="Replace secrets, mail addresses, telephone, card and bank numbers."
    ),
]
MarkersAre = Annotated[
    Literal["escape", "refuse"],
    typer.Option("--markers", help="Texts that hold special tokens of the base."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be learned, and train nothing.")
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", help="Write what is learned as a page.", metavar="FILE")
]


@dataclass(frozen=True)
class RowChoice:
    """Which rows a student learns from, and what is done to them before."""

    data: Path | None = None
    where: str = ""
    by: RowsBy | None = None
    reasoning: bool = False
    unfinished: bool = False
    near: float | None = None
    balance: str = ""
    against: Path | None = None
    redact: bool = False
    markers: Literal["escape", "refuse"] | None = None

    @property
    def selects(self) -> bool:
        """Whether rows come from recorded calls."""
        return bool(self.where or self.by or self.reasoning or self.unfinished)

    @property
    def curates(self) -> bool:
        """Whether anything is done to rows that lie ready."""
        return bool(
            self.near or self.balance or self.against or self.redact or self.markers is not None
        )

    def curation(self) -> Curation:
        """What is done to the rows.

        Raises:
            UsageError: `balance` names another column, or no number; the file holds no questions.
        """
        from reflux.finetune.data.curation import Balance, Curation

        column, _, ratio = self.balance.partition(":")
        if column and column not in get_args(Balance):
            known = ", ".join(get_args(Balance))
            raise UsageError(f"--balance {self.balance!r}: it takes {known}, and a ratio: node:3")
        try:
            times = float(ratio or 1)
        except ValueError:
            times = 0.0
        if not 1 <= times < 1e9:
            raise UsageError(f"--balance {self.balance!r}: the ratio is a number from 1 on")
        texts = () if self.against is None else read_questions(self.against).rows
        return Curation(
            exact=self.selects,
            near=(0.9 if self.selects else 0.0) if self.near is None else self.near,
            balance=cast("Balance | None", column or None),
            ratio=times,
            redact=self.redact,
            markers=self.markers or "escape",
            against=[row.question for row in texts],
        )
