"""The report of a run: `report.json`, and the chart of accuracy by round."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reflux.finetune.run_folder import replacing

SYSTEMS = (
    ("direct", "base, one call", "#8a8f98", "o"),
    ("amplified", "amplified (H + copies of X)", "#c2571a", "s"),
    ("student", "student, one call", "#2463a8", "D"),
)


def draw(rounds: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw accuracy by round for direct, amplified and student, with 95% intervals (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4.2), dpi=144)
    for offset, (key, label, colour, marker) in enumerate(SYSTEMS):
        points = [(r["round"], r[key]) for r in rounds if r.get(key)]
        if not points:
            continue
        x = [number + (offset - 1) * 0.06 for number, _ in points]
        y = [score["accuracy"] for _, score in points]
        low = [max(0.0, score["accuracy"] - score["ci95"][0]) for _, score in points]
        high = [max(0.0, score["ci95"][1] - score["accuracy"]) for _, score in points]
        axes.errorbar(x, y, yerr=[low, high], label=label, color=colour, marker=marker, capsize=3)
    axes.set_xticks([r["round"] for r in rounds])
    axes.set_xticklabels([f"round {r['round']}\nlevel {r['level']}" for r in rounds])
    axes.set_ylim(-0.03, 1.05)
    axes.set_ylabel("accuracy (95% interval)")
    axes.set_title(title, fontsize=11)
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left")
    figure.tight_layout()
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")
    finally:
        plt.close(figure)
