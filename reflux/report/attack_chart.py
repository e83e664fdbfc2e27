"""A chart of attack searches: the share of goals reached after so many queries, and their cost."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reflux.agents.files import write_whole

WORDS = {"control": "control flow", "value": "wrong value"}


@dataclass(frozen=True)
class Line:
    """One system, and what goals of one kind cost there."""

    system: str
    kind: str
    shares: Sequence[float]
    """Goals reached after 1, 2, … queries."""
    cost: float | None
    ends: tuple[float, float | None]
    """Of the cost's interval."""

    @classmethod
    def of(cls, figures: Mapping[str, Any], kind: str) -> "Line":
        """The line of a system, from `reflux.graphs.attacks.found.figures`."""
        cost = figures[kind]
        low, high = cost["cost_95"]
        return cls(figures["system"], kind, cost["curve"], cost["cost"], (low, high))


def chart(groups: Mapping[str, Sequence[Line]]) -> str:
    """An SVG image; each group, such as an agent, is a row of panels. Texts are drawn as paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings: Any = {"svg.hashsalt": "reflux", "svg.fonttype": "path", "text.parse_math": False}
    with matplotlib.rc_context(settings):
        height = 3.4 * len(groups)
        figure, axes = plt.subplots(len(groups), 3, figsize=(13, height), squeeze=False)
        try:
            for row, (name, lines) in zip(axes, groups.items(), strict=True):
                for ax, kind in zip(row, WORDS, strict=False):
                    _shares(ax, [line for line in lines if line.kind == kind])
                    ax.set_title(f"{name}: {WORDS[kind]}", fontsize=9)
                _costs(row[2], [line for line in lines if line.kind == "value"])
            figure.tight_layout()
            svg = io.StringIO()
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(svg, format="svg", metadata=metadata)
        finally:
            plt.close(figure)
    return svg.getvalue()


def _shares(ax: Any, lines: Sequence[Line]) -> None:
    for index, line in enumerate(lines):
        at = [0, *range(1, len(line.shares) + 1)]
        # Lines that coincide, as at 0 and 1, stay apart.
        shares = [share + 0.008 * index for share in (0, *line.shares)]
        ax.step(at, shares, where="post", label=line.system, linewidth=1.4)
    ax.set(xlabel="queries", ylabel="share of goals reached", ylim=(-0.03, 1.12))
    ax.grid(alpha=0.2)
    if any(line.shares for line in lines):
        ax.legend(fontsize=6, loc="center right")


def _costs(ax: Any, lines: Sequence[Line]) -> None:
    """The cost of a value, on a logarithmic axis; an arrow for a cost without an upper end."""
    for index, line in enumerate(lines):
        low, high = line.ends
        cost = line.cost if line.cost is not None else low
        top = high if high is not None and math.isfinite(high) else cost * 3
        ends = [[max(0.0, cost - low)], [max(0.0, top - cost)]]
        endless = high is None
        ax.errorbar([index], [cost], yerr=ends, fmt="o", capsize=3, lolims=endless, markersize=4)
    ax.set_yscale("log")
    ax.set_xticks(range(len(lines)), [line.system for line in lines], rotation=30, fontsize=6)
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("right")
    ax.set_ylabel("queries to a wrong value")
    ax.grid(alpha=0.2)


def write_chart(path: Path, groups: Mapping[str, Sequence[Line]]) -> None:
    """Write the chart of what was found."""
    write_whole(path, chart(groups))
