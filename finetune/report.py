"""The report of a run: accuracy by level, `report.json`, and the chart `report.png`.

The chart shows accuracy against the level of the questions, with one line for each student: the
base, every round's student, and the amplified system of the last round. Every line covers all
levels of the config, also those that its student was not trained for.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reflux.agents.files import replacing, write_json
from reflux.finetune.stages import Stages
from reflux.graphs.ask import Amplified, Direct, System
from reflux.graphs.traces.spending import spending

# Okabe and Ito's palette, which color-blind readers can tell apart; markers differ, too.
BASE_STYLE = ("#8a8f98", "o", ":")
AMPLIFIED_STYLE = ("#d55e00", "*", "--")
STUDENT_COLORS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2")
STUDENT_MARKERS = ("s", "D", "^", "v", "P", "X")
# Readable on white and on black: the chart has no background.
TEXT_COLOR = "#7d848e"
COLORED = (
    "text.color axes.edgecolor axes.labelcolor axes.titlecolor xtick.color ytick.color grid.color"
)


async def score_levels(
    stages: Stages, number: int | None, system_name: str, model: str
) -> list[dict[str, Any]]:
    """A row for each level of the config that has held-out questions.

    The first level of a task may consist of primitives, none of which is held out. There, the
    score of a model is its share of the overseer's own answers.
    """
    config, task, context = stages.config, stages.task, stages.context(model)
    system: System = Amplified(context) if system_name == "amplified" else Direct(context)
    rows: list[dict[str, Any]] = []
    for level in sorted({spec.level for spec in config.rounds}):
        split = "held_out"
        questions = task.sample(config.questions_per_level, level, split, config.seed + 1)
        if not questions and level == config.rounds[0].level and system_name != "amplified":
            split, questions = "primitive", task.primitives()
        if not questions:
            continue
        source = stages.source(number or 0, f"{system_name}-level-{level}", split)
        score = await stages.score(system, source, questions, f"level {level}: {model}")
        figures = {"accuracy": score.accuracy, "n": score.n, "ci95": list(score.ci95)}
        label = {"round": number, "system": system_name, "model": model, "level": level}
        rows.append({**label, "split": split, **figures})
    return rows


def write_report(stages: Stages, rounds: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """Write `report.json` and `report.png` for the rounds so far."""
    folder = stages.run.folder
    by_level = [row for report in rounds for row in report["by_level"]]
    body = {
        "run": folder.id,
        "task": stages.task.name,
        "seed": stages.config.seed,
        "model": {"id": folder.base.name, "sha256": folder.base.weights_digest},
        "seconds": round(seconds, 1),
        "models": spending(stages.run.store, folder.id, stages.config.spend_limit.prices),
        "by_level": by_level,
        "rounds": [{k: v for k, v in report.items() if k != "by_level"} for report in rounds],
    }
    write_json(folder.report_path, body)
    unit = getattr(stages.task, "level_unit", "level")
    draw_by_level(by_level, folder.chart_path, stages.task.name, unit)


def draw_by_level(by_level: Sequence[Mapping[str, Any]], path: Path, task: str, unit: str) -> None:
    """Draw accuracy against level with 95% intervals, one line for each system (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    levels = sorted({row["level"] for row in by_level})
    counts = sorted({row["n"] for row in by_level}) or [0]
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines = _lines(by_level)
    colors: Any = dict.fromkeys(COLORED.split(), TEXT_COLOR)
    with plt.rc_context(colors):
        figure, axes = plt.subplots(figsize=(8.0, 4.2), dpi=144)
        for index, (label, (color, marker, style), rows) in enumerate(lines):
            # Slightly apart, so that intervals of equal scores do not cover each other.
            shift = (index - (len(lines) - 1) / 2) * 0.04
            scores = [row["accuracy"] for row in rows]
            low = [max(0.0, row["accuracy"] - row["ci95"][0]) for row in rows]
            high = [max(0.0, row["ci95"][1] - row["accuracy"]) for row in rows]
            xs = [levels.index(row["level"]) + shift for row in rows]
            look = {"color": color, "marker": marker, "linestyle": style, "capsize": 3}
            axes.errorbar(xs, scores, yerr=[low, high], label=label, **look)
        axes.set_xticks(range(len(levels)), [str(level) for level in levels])
        axes.set(xlabel=unit, ylabel="accuracy (95% interval)", ylim=(-0.03, 1.05))
        axes.set_title(f"{task}: accuracy in one call, n = {n}", fontsize=11)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
        figure.tight_layout()
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, format="png", transparent=True)
        finally:
            plt.close(figure)


Line = tuple[str, tuple[str, str, str], list[Mapping[str, Any]]]
"""(label, (color, marker, line style), rows by level) of a system of the chart."""


def _lines(by_level: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The base, every student, and the amplified system of the last round that has one."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in sorted(by_level, key=lambda row: row["level"]):
        groups.setdefault((row["system"], row["round"] or 0), []).append(row)
    lines: list[Line] = [("base", BASE_STYLE, groups["base", 0])] if ("base", 0) in groups else []
    for number in sorted(number for system, number in groups if system == "student"):
        color = STUDENT_COLORS[number % len(STUDENT_COLORS)]
        marker = STUDENT_MARKERS[number % len(STUDENT_MARKERS)]
        lines.append((f"student r{number}", (color, marker, "-"), groups["student", number]))
    if amplified := [number for system, number in groups if system == "amplified"]:
        rows = groups["amplified", max(amplified)]
        lines.append(("amplified (last round)", AMPLIFIED_STYLE, rows))
    return lines
