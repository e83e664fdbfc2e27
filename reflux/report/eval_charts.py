"""The charts of an evaluation as one SVG image."""

import io
import re
from collections.abc import Callable
from typing import Any

from reflux.graphs.evals.results import Results
from reflux.report.terminal import printable

COLOURS = ("#8a8f98", "#c2571a", "#2463a8", "#4c8c4a", "#8e4fa8", "#a88a24", "#2a9d9d", "#b3395b")
Panel = Callable[[Any, Results], None]


def charts(results: Results) -> str:
    """Accuracy, accuracy against tokens, differences, reliability and depth, as `<svg>…</svg>`.

    Texts are drawn as paths, so the image needs no fonts and holds no text of a user.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: list[Panel] = [_accuracy, _tokens]
    if results.differences:
        panels.append(_differences)
    if any(summary.calibration for summary in results.summaries.values()):
        panels.append(_reliability)
    if any(len(levels) > 1 for levels in results.levels.values()):
        panels.append(_depth)
    rows = (len(panels) + 1) // 2
    # A dollar sign in a name would begin a formula; the salt makes ids reproducible.
    settings: dict[Any, Any] = {
        "svg.hashsalt": "reflux",
        "svg.fonttype": "path",
        "text.parse_math": False,
    }
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


def _bars(value: float, ci95: tuple[float, float]) -> list[list[float]]:
    """Lengths below and above, never negative by rounding."""
    return [[max(0.0, value - ci95[0])], [max(0.0, ci95[1] - value)]]


def _accuracy(axes: Any, results: Results) -> None:
    systems = _coloured(results)
    for y, (_, summary, colour) in enumerate(systems):
        axes.barh(y, summary.accuracy, color=colour, alpha=0.75, height=0.6)
        bars = _bars(summary.accuracy, summary.ci95)
        axes.errorbar(summary.accuracy, y, xerr=bars, color="#222222", capsize=3)
    axes.set_yticks(range(len(systems)), [name for name, _, _ in systems])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_title("accuracy, 95% interval", fontsize=10)


def _tokens(axes: Any, results: Results) -> None:
    for name, summary, colour in _coloured(results):
        bars = _bars(summary.accuracy, summary.ci95)
        each = summary.tokens / summary.n
        axes.errorbar(
            each, summary.accuracy, yerr=bars, color=colour, marker="o", capsize=3, label=name
        )
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens a question")
    axes.set_ylabel("accuracy")
    axes.set_title("accuracy against tokens", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _differences(axes: Any, results: Results) -> None:
    shown = results.differences[:12]
    for y, d in enumerate(shown):
        axes.errorbar(
            d.value, y, xerr=_bars(d.value, d.ci95), color="#2463a8", marker="o", capsize=3
        )
    names = [f"{short(d.first)} − {short(d.second)}" for d in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_title("difference of accuracy, 95% interval", fontsize=10)


def _reliability(axes: Any, results: Results) -> None:
    axes.plot((0, 1), (0, 1), color="#222222", linewidth=0.8, linestyle=":")
    for name, summary, colour in _coloured(results):
        for number, each in enumerate(summary.calibration.bins if summary.calibration else ()):
            axes.errorbar(
                each.confidence,
                each.accuracy,
                yerr=_bars(each.accuracy, each.ci95),
                color=colour,
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1,
                label=None if number else name,
            )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_title("reliability, bins of equal mass", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _depth(axes: Any, results: Results) -> None:
    """Share accepted and accuracy of the nodes of systems that decompose questions."""
    names: list[str] = []
    for (key, levels), (_, _, colour) in zip(
        results.levels.items(), _coloured(results), strict=True
    ):
        if len(levels) < 2:
            continue
        for level in levels:
            y = len(names)
            names.append(f"{short(key)}: {level.depth} {level.kind}")
            axes.barh(y, level.accepted, color=colour, alpha=0.35, height=0.6)
            if level.accuracy is not None and level.ci95 is not None:
                bars = _bars(level.accuracy, level.ci95)
                axes.errorbar(level.accuracy, y, xerr=bars, color="#222222", marker="o", capsize=3)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_title("accepted (bar) and right (dot), by depth and kind", fontsize=10)
