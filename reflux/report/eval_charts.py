"""The charts of an evaluation as one SVG image."""

import io
import re
from collections.abc import Callable, Iterable
from typing import Any

from reflux.graphs.evals.results import Results
from reflux.report.terminal import printable

BLACK, BLUE = "#222222", "#2463a8"
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


def _errors(points: Iterable[tuple[float, tuple[float, float]]]) -> Any:
    """Lengths below and above each (value, interval) `(2, n)`, never negative by rounding."""
    pairs = [(max(0.0, value - low), max(0.0, high - value)) for value, (low, high) in points]
    return list(zip(*pairs, strict=True))


def _accuracy(axes: Any, results: Results) -> None:
    systems = _coloured(results)
    y, accuracy = range(len(systems)), [s.accuracy for _, s, _ in systems]
    axes.barh(y, accuracy, color=[c for _, _, c in systems], alpha=0.75, height=0.6)
    errors = _errors((s.accuracy, s.ci95) for _, s, _ in systems)
    axes.errorbar(accuracy, y, xerr=errors, color=BLACK, linestyle="", capsize=3)
    axes.set_yticks(y, [name for name, _, _ in systems])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02))
    axes.set_title("accuracy, 95% interval", fontsize=10)


def _tokens(axes: Any, results: Results) -> None:
    for name, s, colour in _coloured(results):
        errors = _errors([(s.accuracy, s.ci95)])
        style: dict[str, Any] = {"color": colour, "marker": "o", "capsize": 3, "label": name}
        axes.errorbar([s.tokens / s.n], [s.accuracy], yerr=errors, **style)
    axes.set(xlim=(0, None), ylim=(-0.03, 1.05), xlabel="tokens a question", ylabel="accuracy")
    axes.set_title("accuracy against tokens", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _differences(axes: Any, results: Results) -> None:
    shown = results.differences[:12]
    y, errors = range(len(shown)), _errors((d.value, d.ci95) for d in shown)
    style: dict[str, Any] = {"color": BLUE, "marker": "o", "linestyle": "", "capsize": 3}
    axes.errorbar([d.value for d in shown], y, xerr=errors, **style)
    axes.set_yticks(y, [f"{short(d.first)} − {short(d.second)}" for d in shown], fontsize=8)
    axes.set(ylim=(len(shown) - 0.5, -0.5))
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_title("difference of accuracy, 95% interval", fontsize=10)


def _reliability(axes: Any, results: Results) -> None:
    axes.plot((0, 1), (0, 1), color=BLACK, linewidth=0.8, linestyle=":")
    for name, summary, colour in _coloured(results):
        if summary.calibration is None:
            continue
        bins = summary.calibration.bins
        x, y = [each.confidence for each in bins], [each.accuracy for each in bins]
        errors = _errors((each.accuracy, each.ci95) for each in bins)
        style: dict[str, Any] = {"color": colour, "marker": "o", "linestyle": "", "label": name}
        axes.errorbar(x, y, yerr=errors, markersize=4, capsize=2, elinewidth=1, **style)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.03, 1.05), xlabel="confidence", ylabel="accuracy")
    axes.set_title("reliability, bins of equal mass", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _depth(axes: Any, results: Results) -> None:
    """Share accepted and accuracy of the nodes of systems that decompose questions."""
    rows = [
        (f"{short(key)}: {level.depth} {level.kind}", level, colour)
        for (key, levels), (_, _, colour) in zip(
            results.levels.items(), _coloured(results), strict=True
        )
        for level in levels
        if len(levels) > 1
    ]
    for y, (_, level, colour) in enumerate(rows):
        axes.barh(y, level.accepted, color=colour, alpha=0.35, height=0.6)
        if level.accuracy is not None and level.ci95 is not None:
            errors = _errors([(level.accuracy, level.ci95)])
            axes.errorbar([level.accuracy], [y], xerr=errors, color=BLACK, marker="o", capsize=3)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02))
    axes.set_title("accepted (bar) and right (dot), by depth and kind", fontsize=10)
