"""The figures of an evaluation as tables, for the terminal and for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from reflux.graphs.evals.best_of import EqualTokens
from reflux.graphs.evals.decisions import ALPHA, Decision
from reflux.graphs.evals.results import Results
from reflux.report.terminal import counted, table_of

WRAPPED = ("system", "systems", "model", "verdict", "how questions ended")
"""Columns that may take several lines."""
NO_WIDTH = (
    "An interval without width is no certainty: every question gave the same difference, and p "
    "states what that is worth."
)
MEANT = (
    "known: calls that the cache answered; seconds: the sum of the models' latencies, which "
    "overlap."
)
SCALED = (
    "scaled: ECE after temperature scaling, each half of the answers by the scaling of the other; "
    "T, offset: the scaling of all."
)
CURVE = (
    "Read off the two systems' answers to the same questions: a threshold chosen here is too good "
    "by chance. Try it on others: cascade-0.8, with the agent's scaling where it has one."
)
REASON = 100
"""Maximum characters of a reason why questions failed."""
MANY = 100
"""Answers from which on a share has three decimals, not two."""


@dataclass(frozen=True)
class Figures:
    """One table: a heading, columns, rows of texts, and notes below."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def tables(results: Results, source: Mapping[str, Any]) -> list[Table]:
    """All tables for a terminal."""
    return [
        table_of(each.columns, each.rows, title=each.heading, notes=each.notes, wraps=WRAPPED,
                 right=each.columns[1:])
        for each in figures(results, source)
    ]  # fmt: skip


def figures(results: Results, source: Mapping[str, Any]) -> list[Figures]:
    """Accuracy, price, and where they exist differences, calibration and breakdowns."""
    shown = [_accuracy(results, source), _price(results)]
    if results.decisions:
        shown.append(_decisions(results))
    if results.differences:
        shown.append(_differences(results))
    if any(summary.calibration for summary in results.summaries.values()):
        shown.append(_calibration(results))
    if results.curve:
        shown.append(_cascade(results))
    return shown + [
        _breakdown(key, results) for key, levels in results.levels.items() if len(levels) > 1
    ]


def title(results: Results, source: Mapping[str, Any]) -> str:
    """The eval task, the number of questions, the seeds and the scorer."""
    level = f", level {source['level']}" if "level" in source else ""
    n = max(summary.questions for summary in results.summaries.values())
    seeds = ", ".join(map(str, results.seeds))
    kind = "held-out question" if results.split == "held_out" else "question"
    return f"{results.eval_task}{level}: {counted(n, kind)}, seed {seeds}, score {results.rule}"


def _accuracy(results: Results, source: Mapping[str, Any]) -> Figures:
    columns = ("system", "model", "n", "accuracy", "95%", "cut", "calls/n", "tokens/n")
    rows = [
        (key, s.model, str(s.n), share(s.accuracy, s.n), interval(s.ci95, s.n), str(s.truncated),
         f"{s.calls / s.n:.2f}" if s.calls else "–",
         f"{s.tokens / s.n:.1f}" if s.tokens else "–")
        for key, s in results.summaries.items()
    ]  # fmt: skip
    notes = [] if results.equal is None else [equal_text(results.equal)]
    if limit := results.settings.get("max_tokens"):
        notes.append(
            f"Every answer and every step of an overseer may take {limit} tokens; cut: answers "
            "that this limit cut, right or wrong."
        )
    if unused := source.get("unused"):
        notes.append(f"Columns that are not used: {', '.join(unused)}.")
    for key, s in results.summaries.items():
        if s.unscored:
            notes.append(f"{key}: {counted(s.unscored, 'answer')} without a score, left out.")
        if not s.calls:
            notes.append(
                f"{key}: no model call was seen. The calls of a graph are counted where it makes "
                "them through LangChain."
            )
        elif not s.tokens:
            notes.append(f"{key}: its endpoint counts no tokens, so its cost is unknown.")
    return Figures(title(results, source), columns, rows, (*notes, *results.hints))


def equal_text(equal: EqualTokens) -> str:
    """The votes and tokens of best-of-n beside amplified's tokens."""
    dearer = "; one vote alone is dearer" if equal.dearer else ""
    return (
        f"best-of-n: {counted(equal.votes, 'vote')}, {equal.tokens} tokens "
        f"against the {equal.amplified_tokens} of amplified{dearer}"
    )


def _price(results: Results) -> Figures:
    columns = ("system", "calls", "known", "tokens", "seconds", "cost", "how questions ended")
    rows = [
        (key, str(s.calls or "–"), str(s.cached), str(s.tokens or "–"), f"{s.seconds:.1f}",
         "–" if s.cost is None else f"{s.cost:.4g}",
         ", ".join(f"{count} {status}" for status, count in s.statuses.items()))
        for key, s in results.summaries.items()
    ]  # fmt: skip
    return Figures("Price", columns, rows, (MEANT, *reasons(results)))


def reasons(results: Results) -> list[str]:
    """The most common error of each system's questions that ended without an accepted answer."""
    lines: list[str] = []
    for key, score in results.summaries.items():
        total = sum(score.errors.values())
        for error, count in [*score.errors.items()][:1]:
            text = error if len(error) <= REASON else error[: REASON - 1] + "…"
            share = f"{count} of them" if count < total else "all of them"
            lines.append(f"{key}, {total} of {score.n} not accepted, {share}: {text}")
    return lines


def _decisions(results: Results) -> Figures:
    rows = [
        (f"{d.first} vs {d.second}", verdict_text(d), share(d.difference, d.n, "+"), _p(d.p_differ),
         _p(d.p_equal), str(d.n))
        for d in results.decisions
    ]  # fmt: skip
    many = f", corrected for {len(rows)} pairs (Holm)" if len(rows) > 1 else ""
    left_out = sum(d.unscored for d in results.decisions)
    notes = [f"Each verdict is wrong in at most {ALPHA:.0%} of evaluations{many}."]
    if left_out:
        notes.append(f"{counted(left_out, 'question')} left out: an answer to them has no score.")
    columns = ("systems", "verdict", "difference", "p differ", "p equal", "n")
    return Figures("Decisions", columns, rows, notes)


def verdict_text(decision: Decision) -> str:
    """The verdict in words, with what would decide it."""
    match decision.verdict:
        case "equal":
            return f"equal within {decision.margin:g}"
        case "undecided" if not decision.difference:
            return "undecided; nothing tells them apart so far"
        case "undecided":
            needed = decision.needed
            if needed is None:
                return "undecided; no affordable number of questions would decide it"
            return f"undecided; some {_rounded(needed)} questions would decide it"
        case verdict:
            return f"{decision.first} is {verdict}"


def _rounded(number: int) -> int:
    """To two digits, upwards."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def _differences(results: Results) -> Figures:
    rows = [
        (f"{d.first} − {d.second}", share(d.value, d.n, "+"), interval(d.ci95, d.n, "+"), _p(d.p),
         str(d.only_first), str(d.only_second), str(d.n))
        for d in results.differences
    ]  # fmt: skip
    return Figures(
        "Differences on the same questions (paired bootstrap, McNemar's exact test)",
        ("systems", "difference", "95%", "p", "only 1st", "only 2nd", "n"),
        rows,
        (NO_WIDTH,) if any(d.ci95[0] == d.ci95[1] for d in results.differences) else (),
    )


def share(value: float, n: int, sign: str = "") -> str:
    """A share of `n`, with no more decimals than so few can tell apart."""
    return f"{value:{sign}.{3 if n >= MANY else 2}f}"


def interval(ci95: tuple[float, float], n: int, sign: str = "") -> str:
    """`[0.970, 0.990]`."""
    return f"[{share(ci95[0], n, sign)}, {share(ci95[1], n, sign)}]"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _calibration(results: Results) -> Figures:
    rows: list[tuple[str, ...]] = []
    for key, s in results.summaries.items():
        brier, ece, bins, n, unknown = "–", "–", "–", 0, s.n
        if (c := s.calibration) is not None:
            brier, ece = share(c.brier, c.n), share(c.ece, c.n)
            bins, n, unknown = str(len(c.bins)), c.n, c.unknown
        after, by = "–", "–"
        if (found := s.scaled) is not None:
            after = share(found.after.ece, n)
            by = f"{found.scaling.temperature:.2f}, {found.scaling.offset:+.2f}"
        rows.append((key, brier, ece, after, by, bins, str(n), str(unknown)))
    columns = ("system", "Brier", "ECE", "scaled", "T, offset", "bins", "n", "unknown")
    return Figures("Calibration", columns, rows, (SCALED,))


def _cascade(results: Results) -> Figures:
    rows = [
        ("–" if p.threshold is None else f"{p.threshold:.3f}", share(p.deferred, MANY),
         share(p.accuracy, MANY), f"{p.tokens:.1f}")
        for p in results.curve
    ]  # fmt: skip
    columns = ("from confidence", "amplified", "accuracy", "tokens/n")
    return Figures("The agent alone where it is sure, else amplified", columns, rows, (CURVE,))


def _short(count: int) -> str:
    """In millions from a million on, so that the table fits 80 columns."""
    return str(count) if count < 1_000_000 else f"{count / 1e6:.1f}M"


def _breakdown(key: str, results: Results) -> Figures:
    columns = ("node", "nodes", "accept", "calls", "tokens", "marked", "right", "95%")
    rows = [
        (f"{level.depth} {level.kind}", _short(level.nodes), share(level.accepted, level.nodes),
         _short(level.calls), _short(level.tokens), _short(level.marked),
         "–" if level.accuracy is None else share(level.accuracy, level.marked),
         "–" if level.ci95 is None else interval(level.ci95, level.marked))
        for level in results.levels[key]
    ]  # fmt: skip
    return Figures(f"{key} by depth and kind of node", columns, rows)
