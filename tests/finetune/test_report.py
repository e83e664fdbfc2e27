"""The chart: every student is scored at every level of the config."""

import warnings
from pathlib import Path

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest
from reflux.finetune.report import draw_by_level, draw_losses, score_levels
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages
from tests.support.sums import CONFIG, SuspiciousAddition, exact

LEARNED = {"base": 0, "student-r0": 1, "student-r1": 2, "student-r2": 4}


def limited(request: ChatRequest) -> str:
    """The right sum, up to as many digits as the student learned."""
    digits = len(request.messages[-1][1].split("+")[0])
    return exact(request) if digits <= LEARNED[request.model] else "?"


@pytest.mark.slow
async def test_each_student_is_scored_at_all_levels_and_climbs(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"questions_per_level": 10})
    run = OpenRun(RunFolder(tmp_path / "r"), client=ScriptedClient(limited))
    stages = Stages(config, SuspiciousAddition(), run, lambda *_: None)
    async with run:
        rows = await score_levels(stages, None, "base", "base")
        for n in range(3):
            rows += await score_levels(stages, n, "student", f"student-r{n}")
        rows += await score_levels(stages, 2, "amplified", "student-r1")
    found = [(row["system"], row["round"], row["level"], row["accuracy"], row["n"]) for row in rows]
    # All sums of one digit are primitives: none is held out.
    assert found == [
        ("base", None, 1, 0.0, 200),
        ("base", None, 2, 0.0, 10),
        ("base", None, 4, 0.0, 10),
        ("student", 0, 1, 1.0, 200),
        ("student", 0, 2, 0.0, 10),
        ("student", 0, 4, 0.0, 10),
        ("student", 1, 1, 1.0, 200),
        ("student", 1, 2, 1.0, 10),
        ("student", 1, 4, 0.0, 10),
        ("student", 2, 1, 1.0, 200),
        ("student", 2, 2, 1.0, 10),
        ("student", 2, 4, 1.0, 10),
        ("amplified", 2, 2, 1.0, 10),
        ("amplified", 2, 4, 1.0, 10),
    ]
    assert all(row["ci95"][0] <= row["accuracy"] <= row["ci95"][1] for row in rows)


def test_the_chart_has_a_line_for_each_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    labels: list[str] = []
    errorbar = Axes.errorbar

    def recorded(self: Axes, *args, **options):
        labels.append(options["label"])
        return errorbar(self, *args, **options)

    monkeypatch.setattr(Axes, "errorbar", recorded)
    systems = [("base", None), ("student", 0), ("student", 1), ("amplified", 0), ("amplified", 1)]
    rows = [
        {"system": s, "round": r, "level": level, "accuracy": 0.5, "n": 10, "ci95": [0.3, 0.7]}
        for s, r in systems
        for level in (1, 2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # The font lacks a cheese.
        draw_by_level(rows, tmp_path / "report.png", "Käse 🧀", "digits")
    assert labels == ["base", "student r0", "student r1", "amplified (last round)"]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_losses_of_every_training_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    drawn: dict[str, list[float]] = {}
    plot = Axes.plot

    def recorded(self: Axes, *args, **options):
        drawn[options["label"]] = list(args[1])
        return plot(self, *args, **options)

    monkeypatch.setattr(Axes, "plot", recorded)
    first = {"loss": [(1, 3.0), (2, 1.0)], "eval_loss": [(2, 1.5)]}
    second = {"loss": [(1, 2.0)], "eval_loss": []}
    draw_losses({"student r0": first, "student r1": second, "old": {}}, tmp_path / "loss.png")
    assert drawn == {"student r0": [3.0, 1.0], "student r0, held out": [1.5], "student r1": [2.0]}
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
