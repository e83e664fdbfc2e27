"""The report of a run: `report.json`, and the charts `report.png` and `loss.png`.

The chart shows accuracy against the level of the questions, with one line for each student: the
base, every round's student, and the amplified system of the last round. Every line covers all
levels of the config, also those that its student was not trained for. A run without levels shows
its systems against the round; without true answers the shares that can be measured: answers that
pass the check, and agreement.

`loss.png` shows the loss of every student's training, and on the rows held out of it.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reflux.agents.files import replacing, write_json
from reflux.finetune.stages import Stages
from reflux.graphs.ask import Amplified, Direct, System
from reflux.graphs.traces.spending import overseer_calls, spending

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
    levels = sorted({spec.level for spec in config.rounds})
    if stages.first and len(levels) == 1:
        return []  # The rounds differ in nothing but their number.
    for level in levels:
        split = "held_out"
        questions = task.sample(config.questions_per_level, level, split, config.seed + 1)
        if not questions and level == config.rounds[0].level and system_name != "amplified":
            split, questions = "primitive", task.primitives()
        if not questions:
            continue
        source = stages.source(number or 0, f"{system_name}-level-{level}", split)
        score = await stages.score(system, source, questions, f"level {level}: {model}")
        if score.unscored == score.n:
            continue
        figures = {"accuracy": score.accuracy, "n": score.n, "ci95": list(score.ci95)}
        label = {"round": number, "system": system_name, "model": model, "level": level}
        rows.append({**label, "split": split, **figures})
    return rows


def write_report(stages: Stages, rounds: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """Write `report.json` and its charts for the rounds so far."""
    folder = stages.run.folder
    by_level = [row for report in rounds for row in report["by_level"]]
    body = {
        "run": folder.id,
        "task": stages.task.name,
        "seed": stages.config.seed,
        "model": {"id": folder.base.name, "sha256": folder.base.weights_digest},
        "seconds": round(seconds, 1),
        "models": spending(stages.run.store, folder.id, stages.config.spend_limit.prices),
        "overseer_calls": overseer_calls(stages.run.store, folder.id),
        "by_level": by_level,
        "rounds": [{k: v for k, v in report.items() if k != "by_level"} for report in rounds],
    }
    write_json(folder.report_path, body)
    if by_level:
        unit = getattr(stages.task, "level_unit", "level")
        draw_by_level(by_level, folder.chart_path, stages.task.name, unit)
    else:
        draw_by_round(rounds, folder.chart_path, stages.task.name)
    curves = {f"student r{report['round']}": report.get("loss", {}) for report in rounds}
    draw_losses(curves, folder.loss_path)


def draw_by_level(by_level: Sequence[Mapping[str, Any]], path: Path, task: str, unit: str) -> None:
    """Draw accuracy against level with 95% intervals, one line for each system (PNG)."""
    counts = sorted({row["n"] for row in by_level}) or [0]
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    title = f"{task}: accuracy in one call, n = {n}"
    lines = [
        (label, style, [(row["level"], row["accuracy"], row["ci95"]) for row in rows])
        for label, style, rows in _lines(by_level)
    ]
    _draw(lines, path, title, unit, "accuracy")


ROUND_STYLES = {
    "base": BASE_STYLE,
    "amplified": AMPLIFIED_STYLE,
    "student": (STUDENT_COLORS[2], "s", "-"),
    "student = amplified": (STUDENT_COLORS[3], "D", "-."),
}


def draw_by_round(rounds: Sequence[Mapping[str, Any]], path: Path, task: str) -> None:
    """Draw the accuracy of each system against the round; without true answers the shares of
    answers that pass the check, and the agreement (PNG)."""
    points: dict[str, list[Point]] = {}
    scored = any(row["student"]["accuracy"] is not None for row in rounds)
    for row in rounds:
        for key, label in (("direct", "base"), ("amplified",) * 2, ("student",) * 2):
            score = row[key] or {}
            value, ci95 = score.get("accuracy"), score.get("ci95")
            if not scored and (passed := score.get("passed")):
                value, ci95 = passed["share"], passed["ci95"]
            if value is not None and ci95 is not None:
                points.setdefault(label, []).append((row["round"], value, ci95))
        if not scored and (same := row.get("agreement")):
            point = (row["round"], same["share"], same["ci95"])
            points.setdefault("student = amplified", []).append(point)
    what = "accuracy" if scored else "share of answers that pass the check, or agree"
    lines = [(label, ROUND_STYLES[label], points[label]) for label in points]
    n = max((row["student"]["n"] for row in rounds), default=0)
    _draw(lines, path, f"{task}: {what}, n = {n}", "round", "accuracy" if scored else "share")


Point = tuple[int, float, Sequence[float]]
"""(level or round, value, 95% interval)."""
Style = tuple[str, str, str]
"""(color, marker, line style)."""


def _draw(
    lines: Sequence[tuple[str, Style, Sequence[Point]]],
    path: Path,
    title: str,
    unit: str,
    what: str,
) -> None:
    """Draw lines with 95% intervals, whose points lie at equal distances (PNG)."""
    levels = sorted({point[0] for _, _, points in lines for point in points})
    with _chart(path) as axes:
        for index, (label, (color, marker, style), points) in enumerate(lines):
            # Slightly apart, so that intervals of equal scores do not cover each other.
            shift = (index - (len(lines) - 1) / 2) * 0.04
            scores = [value for _, value, _ in points]
            low = [max(0.0, value - ci95[0]) for _, value, ci95 in points]
            high = [max(0.0, ci95[1] - value) for _, value, ci95 in points]
            xs = [levels.index(level) + shift for level, _, _ in points]
            look = {"color": color, "marker": marker, "linestyle": style, "capsize": 3}
            axes.errorbar(xs, scores, yerr=[low, high], label=label, **look)
        axes.set_xticks(range(len(levels)), [str(level) for level in levels])
        axes.set(xlabel=unit, ylabel=f"{what} (95% interval)", ylim=(-0.03, 1.05))
        axes.set_title(title, fontsize=11)


def draw_losses(curves: Mapping[str, Mapping[str, Sequence[Any]]], path: Path) -> None:
    """Draw the loss against the step, and dashed that on the rows held out (PNG)."""
    with _chart(path) as axes:
        for index, (label, curve) in enumerate(curves.items()):
            color = STUDENT_COLORS[index % len(STUDENT_COLORS)]
            for key, style, suffix in (("loss", "-", ""), ("eval_loss", "--", ", held out")):
                if points := curve.get(key):
                    axes.plot(*zip(*points, strict=True), style, color=color, label=label + suffix)
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.set_ylim(bottom=0)
        axes.set_title("Loss in training", fontsize=11)


@contextmanager
def _chart(path: Path) -> Iterator[Any]:
    """The axes of a chart, which is written when the block ends."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colors: Any = dict.fromkeys(COLORED.split(), TEXT_COLOR)
    with plt.rc_context(colors), warnings.catch_warnings():
        # Of a task's name, such as 🧀.png: the font shows a box.
        warnings.filterwarnings("ignore", "Glyph ", UserWarning)
        figure, axes = plt.subplots(figsize=(8.0, 4.2), dpi=144)
        try:
            yield axes
            axes.grid(axis="y", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
            figure.tight_layout()
            with replacing(path) as temporary:
                figure.savefig(temporary, format="png", transparent=True)
        finally:
            plt.close(figure)


Line = tuple[str, Style, list[Mapping[str, Any]]]
"""(label, style, rows by level) of a system of the chart."""


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
