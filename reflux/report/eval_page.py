"""An evaluation on disk: `eval.jsonl`, `eval.json` and `eval.html`, a page with charts.

The page shows texts of models and users as text, and its policy forbids scripts and addresses.
"""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from reflux.agents.files import replacing, write_json, write_whole
from reflux.graphs.evals.answers import Answered
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.results import Results
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.report.eval_tables import figures, title
from reflux.report.terminal import printable
from reflux.report.tree_page import page_template

MAX_FAILURES = 50
"""Of each system on the page; `eval.jsonl` has all."""
MAX_NODES = 400
"""Of one tree on the page."""
MAX_CHARS = 2_000
"""Of one text on the page."""
BLACK, BLUE = "#222222", "#2463a8"
COLOURS = ("#8a8f98", "#c2571a", "#2463a8", "#4c8c4a", "#8e4fa8", "#a88a24", "#2a9d9d", "#b3395b")


def write_report(
    folder: Path,
    results: Results,
    eval_task: EvalTask,
    store: TraceStore,
    source: Mapping[str, Any],
) -> None:
    """Write the three files, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "eval.jsonl") as path, path.open("w", encoding="utf-8") as file:
        for answer in (answer for answers in results.answers.values() for answer in answers):
            expected = {"expected": list(eval_task.true_answers(answer.question))}
            file.write(json.dumps(asdict(answer) | expected) + "\n")
    write_json(folder / "eval.json", dict(source) | results.to_json())
    page = page_template("eval.html.jinja", MAX_CHARS).render(
        title=title(results, source),
        charts=Markup(charts(results)),  # noqa: S704 - drawn by us, texts as paths
        figures=figures(results, source),
        failures=[
            (
                key,
                len(answers),
                len(answers) - answers.tally.right,
                _failures(answers, eval_task, store),
            )
            for key, answers in results.answers.items()
        ],
    )
    write_whole(folder / "eval.html", page)


def _failures(
    answers: Iterable[Answered], eval_task: EvalTask, store: TraceStore
) -> list[dict[str, Any]]:
    """The first `MAX_FAILURES` answers that are not right, for the template."""
    rows: list[dict[str, Any]] = []
    for answer in islice((answer for answer in answers if not answer.right), MAX_FAILURES):
        tree = load_tree(store, answer.trajectory)
        nodes = list(islice(tree.walk(), MAX_NODES + 1))
        rows.append(
            {
                "answer": answer,
                "expected": " or ".join(eval_task.true_answers(answer.question)),
                "tree": tree,
                "paths": {node.path for node in nodes[:MAX_NODES]},
                "cut": len(nodes) > MAX_NODES,
            }
        )
    return rows


def charts(results: Results) -> str:
    """Accuracy, accuracy against tokens, differences, reliability and depth, as `<svg>…</svg>`.

    Texts are drawn as paths, so the image needs no fonts and holds no text of a user.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [_accuracy, _tokens]
    if results.differences:
        panels.append(_differences)
    if any(summary.calibration for summary in results.summaries.values()):
        panels.append(_reliability)
    if any(len(levels) > 1 for levels in results.levels.values()):
        panels.append(_depth)
    rows = (len(panels) + 1) // 2
    # A dollar sign in a name would begin a formula; the salt makes ids reproducible.
    settings: Any = {"svg.hashsalt": "reflux", "svg.fonttype": "path", "text.parse_math": False}
    with matplotlib.rc_context(settings):
        figure, axes = plt.subplots(rows, 2, figsize=(10, 3.6 * rows), squeeze=False)
        try:
            for ax, panel in zip(axes.flat, panels, strict=False):
                panel(ax, results)
                ax.spines[["top", "right"]].set_visible(False)
                ax.grid(alpha=0.2)
            for ax in axes.flat[len(panels) :]:
                ax.set_visible(False)
            figure.tight_layout()
            svg = io.StringIO()
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(svg, format="svg", metadata=metadata)
        finally:
            plt.close(figure)
    return _inline(svg.getvalue())


def _inline(svg: str) -> str:
    """The element alone, without the name spaces that HTML does not need."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    # Matplotlib keeps each text as a comment beside its paths.
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    return svg.replace("xlink:href", "href").replace("<svg ", '<svg role="img" ', 1)


def _coloured(results: Results) -> list[tuple[str, Any, str]]:
    """(name, summary, colour) of each system."""
    return [
        (short(key), summary, COLOURS[index % len(COLOURS)])
        for index, (key, summary) in enumerate(results.summaries.items())
    ]


def short(name: str) -> str:
    """A name that fits beside an axis."""
    plain = printable(name)
    return plain if len(plain) <= 28 else f"{plain[:12]}…{plain[-15:]}"


def _points(
    axes: Any,
    x: Sequence[float],
    y: Sequence[float],
    intervals: str,
    rows: Sequence[Any],
    **style: Any,
) -> None:
    """Dots with the `ci95` of each row around `x` or `y`, whichever `intervals` names."""
    values = x if intervals == "x" else y
    bounds = [(value, *row.ci95) for value, row in zip(values, rows, strict=True)]
    # Never negative by rounding.
    below = [max(0.0, value - low) for value, low, _ in bounds]
    above = [max(0.0, high - value) for value, _, high in bounds]
    style = {"color": BLACK, "marker": "o", "linestyle": "", "capsize": 3} | style
    axes.errorbar(x, y, **{f"{intervals}err": (below, above)}, **style)


def _rows(axes: Any, names: Sequence[str], title: str, fontsize: int | None = None) -> None:
    """Name the rows, the first on top."""
    axes.set_yticks(range(len(names)), names, fontsize=fontsize)
    axes.set(ylim=(len(names) - 0.5, -0.5))
    axes.set_title(title, fontsize=10)


def _accuracy(axes: Any, results: Results) -> None:
    names, summaries, colours = zip(*_coloured(results), strict=True)
    y, accuracy = range(len(names)), [summary.accuracy for summary in summaries]
    axes.barh(y, accuracy, color=colours, alpha=0.75, height=0.6)
    _points(axes, accuracy, y, "x", summaries, marker="")
    axes.set(xlim=(0, 1.02))
    _rows(axes, names, "accuracy, 95% interval")


def _tokens(axes: Any, results: Results) -> None:
    for name, s, colour in _coloured(results):
        _points(axes, [s.tokens / s.n], [s.accuracy], "y", [s], color=colour, label=name)
    axes.set(xlim=(0, None), ylim=(-0.03, 1.05), xlabel="tokens a question", ylabel="accuracy")
    axes.set_title("accuracy against tokens", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _differences(axes: Any, results: Results) -> None:
    shown = results.differences[:12]
    _points(axes, [d.value for d in shown], range(len(shown)), "x", shown, color=BLUE)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    names = [f"{short(d.first)} − {short(d.second)}" for d in shown]
    _rows(axes, names, "difference of accuracy, 95% interval", 8)


def _reliability(axes: Any, results: Results) -> None:
    axes.plot((0, 1), (0, 1), color=BLACK, linewidth=0.8, linestyle=":")
    for name, summary, colour in _coloured(results):
        if summary.calibration is not None:
            bins = summary.calibration.bins
            x, y = [each.confidence for each in bins], [each.accuracy for each in bins]
            style = {"markersize": 4, "capsize": 2, "elinewidth": 1}
            _points(axes, x, y, "y", bins, color=colour, label=name, **style)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.05), xlabel="confidence", ylabel="accuracy")
    axes.set_title("reliability, bins of equal mass", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _depth(axes: Any, results: Results) -> None:
    """Share accepted and accuracy of the nodes of systems that decompose questions."""
    rows = [
        (f"{name}: {level.depth} {level.kind}", level, colour)
        for levels, (name, _, colour) in zip(
            results.levels.values(), _coloured(results), strict=True
        )
        for level in levels
        if len(levels) > 1
    ]
    for y, (_, level, colour) in enumerate(rows):
        axes.barh(y, level.accepted, color=colour, alpha=0.35, height=0.6)
        if level.accuracy is not None and level.ci95 is not None:
            _points(axes, [level.accuracy], [y], "x", [level])
    axes.set(xlim=(0, 1.02))
    _rows(
        axes, [name for name, _, _ in rows], "accepted (bar) and right (dot), by depth and kind", 8
    )
