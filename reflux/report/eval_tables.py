"""An evaluation on the terminal."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.evals.best_of import EqualTokens
from reflux.graphs.evals.results import Results
from reflux.report.terminal import counted, escape

WORDS = ("system", "systems", "model", "how questions ended")
"""Columns that may take several lines."""
NO_WIDTH = (
    "An interval without width is no certainty: all questions told the same of the two, and p says "
    "what that is worth."
)
MEANT = (
    "known: of these calls, answered before and kept; seconds: the sum of the models' latencies, "
    "which overlap."
)
REASON = 100
"""Characters of the commonest reason why a system's questions failed."""
LOOK: dict[str, Any] = {
    "title_justify": "left",
    "caption_justify": "left",
    "box": SIMPLE_HEAD,
    "show_edge": False,
    "pad_edge": False,
    "padding": (0, 1, 0, 0),
}


def tables(found: Results, source: Mapping[str, Any]) -> list[Table]:
    """Accuracy, price, differences, calibration and breakdown, as far as there is any."""
    shown = [_accuracy(found, source), _price(found)]
    if found.differences:
        shown.append(_differences(found))
    if any(summary.calibration for summary in found.summaries.values()):
        shown.append(_calibration(found))
    return shown + [
        _breakdown(key, found) for key, levels in found.levels.items() if len(levels) > 1
    ]


def title(found: Results, source: Mapping[str, Any]) -> str:
    """What was asked: the exam, n and seeds."""
    level = f", level {source['level']}" if "level" in source else ""
    n = max(summary.questions for summary in found.summaries.values())
    seeds = ", ".join(map(str, found.seeds))
    kind = "held-out question" if found.split == "held_out" else "question"
    return f"{found.eval_task}{level}: {counted(n, kind)}, seed {seeds}, score {found.rule}"


def _table(heading: str, *columns: str, caption: str | None = None) -> Table:
    table = Table(title=escape(heading), caption=caption, **LOOK)
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=column not in WORDS,
        )
    return table


def _accuracy(found: Results, source: Mapping[str, Any]) -> Table:
    table = _table(
        title(found, source),
        "system", "model", "n", "accuracy", "95%", "calls/n", "tokens/n",
        caption=None if found.equal is None else equal_text(found.equal),
    )  # fmt: skip
    for key, s in found.summaries.items():
        table.add_row(
            escape(key),
            escape(s.model),
            str(s.n),
            f"{s.accuracy:.3f}",
            interval(s.ci95),
            f"{s.calls / s.n:.2f}",
            f"{s.tokens / s.n:.1f}",
        )
    return table


def equal_text(equal: EqualTokens) -> str:
    """Why best-of-n has so many votes: it looks for the number that costs amplified's tokens."""
    said = (
        f"best-of-n: {equal.votes} vote{'s' if equal.votes > 1 else ''}, {equal.tokens} tokens "
        f"against the {equal.amplified_tokens} of amplified"
    )
    return said + ("; one vote alone is dearer" if equal.dearer else "")


def _price(found: Results) -> Table:
    table = _table(
        "Price",
        "system", "calls", "known", "tokens", "seconds", "cost", "how questions ended",
        caption="\n".join([MEANT, *map(escape, reasons(found))]),
    )  # fmt: skip
    for key, s in found.summaries.items():
        ended = ", ".join(f"{count} {status}" for status, count in s.statuses.items())
        cost = "–" if s.cost is None else f"{s.cost:.4g}"
        figures = (s.calls, s.cached, s.tokens, f"{s.seconds:.1f}", cost, ended)
        table.add_row(escape(key), *map(str, figures))
    return table


def reasons(found: Results) -> list[str]:
    """The commonest reason why questions of a system ended without an accepted answer, a line for
    each system of which one is known."""
    lines: list[str] = []
    for key, answers in found.answers.items():
        why = Counter(a.error for a in answers if not is_accepted(a.status) and a.error)
        for error, times in why.most_common(1):
            cut = error if len(error) <= REASON else error[: REASON - 1] + "…"
            often = f"{times} of them" if times < why.total() else "all of them"
            lines.append(f"{key}, {why.total()} of {len(answers)} not accepted, {often}: {cut}")
    return lines


def _differences(found: Results) -> Table:
    table = _table(
        "Differences on the same questions (paired bootstrap, McNemar's exact test)",
        "systems", "difference", "95%", "p", "only 1st", "only 2nd", "n",
        caption=NO_WIDTH if any(d.ci95[0] == d.ci95[1] for d in found.differences) else None,
    )  # fmt: skip
    for d in found.differences:
        figures = (f"{d.value:+.3f}", interval(d.ci95, "+"), p_text(d.p))
        counts = (d.only_first, d.only_second, d.n)
        table.add_row(escape(f"{d.first} − {d.second}"), *figures, *map(str, counts))
    return table


def interval(ci95: tuple[float, float], sign: str = "") -> str:
    """`[0.970, 0.990]`, for a table."""
    return f"\\[{ci95[0]:{sign}.3f}, {ci95[1]:{sign}.3f}]"


def p_text(p: float) -> str:
    """Three decimals, or how small it is."""
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _calibration(found: Results) -> Table:
    table = _table("Calibration", "system", "Brier", "ECE", "bins", "n", "unknown")
    for key, s in found.summaries.items():
        if (c := s.calibration) is None:
            table.add_row(escape(key), "–", "–", "–", "0", str(s.n))
            continue
        figures = (len(c.bins), c.n, c.unknown)
        table.add_row(escape(key), f"{c.brier:.4f}", f"{c.ece:.4f}", *map(str, figures))
    return table


def _short(count: int) -> str:
    """As it is below a million, then in millions: the table fits 80 columns."""
    return str(count) if count < 1_000_000 else f"{count / 1e6:.1f}M"


def _breakdown(key: str, found: Results) -> Table:
    table = _table(
        f"{key} by depth and kind of node",
        "node", "nodes", "accept", "calls", "tokens", "marked", "right", "95%",
    )  # fmt: skip
    for level in found.levels[key]:
        right = "–" if level.accuracy is None else f"{level.accuracy:.3f}"
        spent = (_short(level.calls), _short(level.tokens))
        figures = (_short(level.nodes), f"{level.accepted:.3f}", *spent, _short(level.marked))
        around = "–" if level.ci95 is None else interval(level.ci95)
        table.add_row(f"{level.depth} {level.kind}", *map(str, figures), right, around)
    return table
