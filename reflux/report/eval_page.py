"""An evaluation on disk: `eval.jsonl`, `eval.json` and `eval.html`, a page that stands alone.

What models and users wrote is shown as text, whatever it holds; a policy in the page forbids
scripts and every address besides.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from reflux.finetune.run_folder import write_json, write_whole
from reflux.graphs.amplify.state import is_accepted
from reflux.graphs.evals.answers import Answered
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.results import Results
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree
from reflux.report.eval_charts import charts
from reflux.report.eval_tables import MEANT, equal_text, p_text, reasons, title
from reflux.report.terminal import STATUS_CLASS, counted, html_text

SHOWN = 50
"""Failures of each system on the page; `eval.jsonl` has all."""
NODES = 400
"""Nodes of one tree on the page."""
CHARS = 2_000
"""Characters of one text on the page."""

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}
th,td{text-align:right;padding:.15rem .7rem;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}
svg{max-width:100%;height:auto}
details{margin:.2rem 0 .2rem 1.1rem}
summary{cursor:pointer;overflow-wrap:anywhere}
.single{margin:.2rem 0 .2rem 1.1rem;overflow-wrap:anywhere}
.text{white-space:pre-wrap}
.ok{color:#23713a}.bad{color:#a33}.warn{color:#8a5a00}.dim{color:#777}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(
    folder: Path, found: Results, eval_task: EvalTask, store: TraceStore, source: Mapping[str, Any]
) -> None:
    """Write the three files, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(answer.to_json() | {"expected": list(eval_task.true_answers(answer.question))})
        for answers in found.answers.values()
        for answer in answers
    ]
    write_whole(folder / "eval.jsonl", "".join(f"{line}\n" for line in lines))
    write_json(folder / "eval.json", dict(source) | found.to_json())
    write_whole(folder / "eval.html", page(found, eval_task, store, source))


def page(found: Results, eval_task: EvalTask, store: TraceStore, source: Mapping[str, Any]) -> str:
    """The whole page."""
    heading = escape(title(found, source))
    body = [
        f"<h1>{heading}</h1>",
        "<p>95% intervals: Wilson's for an accuracy, the paired bootstrap's for a difference; "
        "p is McNemar's exact test.</p>",
        charts(found),
        *_figures(found),
    ]
    for key, answers in found.answers.items():
        body.append(_failures(key, answers, eval_task, store))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{heading}</title><style>{STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _figures(found: Results) -> list[str]:
    systems = [
        (
            key, s.model, s.n, f"{s.accuracy:.3f}", _interval(s.ci95), s.calls, s.cached, s.tokens,
            f"{s.seconds:.1f}", "–" if s.cost is None else f"{s.cost:.4g}",
            ", ".join(f"{count} {status}" for status, count in s.statuses.items()),
        )
        for key, s in found.summaries.items()
    ]  # fmt: skip
    named = ("system", "model", "n", "accuracy", "95%", "calls", "known", "tokens", "seconds")
    parts = ["<h2>Systems</h2>", _table((*named, "cost", "ended"), systems)]
    parts += [f"<p>{escape(line)}</p>" for line in (MEANT, *reasons(found))]
    if found.equal is not None:
        parts.append(f"<p>{escape(equal_text(found.equal))}</p>")
    if found.differences:
        rows = [
            (f"{d.first} − {d.second}", f"{d.value:+.3f}", _interval(d.ci95), p_text(d.p),
             d.only_first, d.only_second, d.n)
            for d in found.differences
        ]  # fmt: skip
        named = ("systems", "difference", "95%", "p", "only first right", "only second", "n")
        parts += ["<h2>Differences on the same questions</h2>", _table(named, rows)]
    known = [(key, s.calibration) for key, s in found.summaries.items() if s.calibration]
    if known:
        rows = [(key, f"{c.brier:.4f}", f"{c.ece:.4f}", c.n, c.unknown) for key, c in known]
        named = ("system", "Brier", "ECE", "n", "unknown")
        parts += ["<h2>Calibration</h2>", _table(named, rows)]
    rows = [
        (key, level.depth, level.kind, level.nodes, f"{level.accepted:.3f}", level.calls,
         level.tokens, level.marked, "–" if level.accuracy is None else f"{level.accuracy:.3f}",
         "–" if level.ci95 is None else _interval(level.ci95))
        for key, levels in found.levels.items() for level in levels
    ]  # fmt: skip
    named = ("system", "depth", "kind", "nodes", "accepted", "calls", "tokens", "marked")
    return [
        *parts,
        "<h2>By depth and kind of node</h2>",
        _table((*named, "accuracy", "95%"), rows),
    ]


def _interval(ci95: tuple[float, float]) -> str:
    return f"[{ci95[0]:.3f}, {ci95[1]:.3f}]"


def _table(named: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in named)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _failures(key: str, answers: Sequence[Answered], eval_task: EvalTask, store: TraceStore) -> str:
    wrong = [answer for answer in answers if not answer.right]
    more = f", the first {SHOWN} shown" if len(wrong) > SHOWN else ""
    shown = [_failure(answer, eval_task, store) for answer in wrong[:SHOWN]]
    heading = f"{escape(key)}: {len(wrong)} of {len(answers)} not right{more}"
    return f"<h2>{heading}</h2>\n" + "\n".join(shown)


def _failure(answer: Answered, eval_task: EvalTask, store: TraceStore) -> str:
    true = " or ".join(eval_task.true_answers(answer.question))
    expected = f' <span class="dim">expected {_text(true)}</span>' if true else ""
    left = [NODES]
    tree = _node(load_tree(store, answer.trajectory), left)
    cut = "" if left[0] >= 0 else '<p class="dim">The tree is longer than what is shown.</p>'
    sure = "" if answer.confidence is None else f", confidence {answer.confidence:.3f}"
    cost = f"{counted(answer.calls, 'call')}, {answer.tokens} tokens{sure}"
    said = _said(answer.answer, answer.status, wrong=True)
    return (
        f"<details><summary>{_text(answer.question)} → {said}"
        f'{expected} <span class="dim">seed {answer.seed}</span></summary>'
        f'<p class="dim">{cost}, trajectory {escape(answer.trajectory)}</p>{tree}{cut}</details>'
    )


def _node(node: Node, left: list[int]) -> str:
    """A node and those below it, until `left` nodes are shown."""
    left[0] -= 1
    if left[0] < 0:
        return ""
    by = f" by {_text(node.answered_by)}" if node.answered_by else ""
    votes = f", {node.votes} votes" if node.votes > 1 else ""
    cost = f" ({counted(node.calls, 'call')}, {node.tokens} tokens{votes})" if node.calls else ""
    note = " ".join(_text(text) for text in (node.note, node.error) if text)
    line = (
        f"{_text(node.question)} → {_said(node.answer, node.status)}{by}"
        f'<span class="dim">{cost} {note}</span>'
    )
    if not node.children:
        return f'<div class="single">{line}</div>'
    below = "".join(_node(child, left) for child in node.children)
    return f"<details><summary>{line}</summary>{below}</details>"


def _said(answer: str | None, status: str, *, wrong: bool = False) -> str:
    kind = "bad" if wrong else STATUS_CLASS.get(status, "bad")
    said = "no answer" if answer is None else _text(answer)
    ended = "" if is_accepted(status) else f' <span class="dim">{escape(status)}</span>'
    return f'<span class="{kind}">{said}</span>{ended}'


def _text(text: str) -> str:
    return html_text(text, CHARS)
