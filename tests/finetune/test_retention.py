"""What a student keeps: figures by closed forms and simulation, the verdict, and a whole run."""

import json
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest
from reflux.finetune.configs.limits import GateConfig, RetentionConfig
from reflux.finetune.gates import judge
from reflux.finetune.retention import measure as measuring
from reflux.finetune.retention.figures import (
    Share,
    forgotten,
    gain,
    ratio,
    variety,
    verdict,
)
from reflux.finetune.retention.measure import measure_retention
from reflux.finetune.retention.suite import SUITE, General, general_questions, last_number
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages
from reflux.tasks.addition import Addition
from tests.support.sums import CONFIG, add


def test_the_interval_of_a_gain_has_the_values_of_the_literature() -> None:
    found = gain(Share(56, 70), Share(48, 80))  # Newcombe 1998, table II, (a), method 10.
    assert found.value == pytest.approx(0.2)
    assert found.ci95 == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_the_interval_of_a_ratio_covers_the_truth_about_as_often_as_it_says() -> None:
    luck, covered = random.Random(0), 0
    for _ in range(400):
        shares = [Share(sum(luck.random() < p for _ in range(200)), 200) for p in (0.6, 0.8)]
        found = ratio(*shares)
        assert found is not None
        assert found.value == pytest.approx(shares[0].value / shares[1].value)
        covered += found.ci95[0] <= 0.75 <= found.ci95[1]
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("right", "other"), [(0, 50), (50, 50), (50, 1)])
def test_a_ratio_at_the_ends_has_an_interval_that_holds_it(right: int, other: int) -> None:
    found = ratio(Share(right, 50), Share(other, 50))
    assert found is not None
    assert found.ci95[0] <= found.value <= found.ci95[1] < float("inf")
    assert ratio(Share(right, 50), Share(0, 50)) is None


def test_variety_counts_answers_and_their_bits() -> None:
    assert variety(["a", "b", "c", "d"]) == {"n": 4, "distinct": 4, "entropy": 2.0}
    assert variety(["a"] * 8) == {"n": 8, "distinct": 1, "entropy": 0.0}
    assert variety(["a", "a", "b", "c"])["entropy"] == 1.5


def row(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "ci95": [low, high], "n": 100}


def body(**changed: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "of_amplified": None,
        "earlier_levels": [],
        "general": None,
        "out_of_distribution": [],
        "variety": {},
    }
    return whole | changed


@pytest.mark.parametrize(
    ("changed", "said", "certain"),
    [
        ({}, "Nothing of what s keeps can be measured", None),
        (
            {"of_amplified": row(0.95, 0.9, 1.004)},
            r"s keeps 95% of the amplified system's accuracy \(95%: 90% to 100%, n = 100\)\.",
            None,
        ),
        (
            {"general": {"gain": row(-0.02, -0.1, 0.05)}},
            r"s has lost nothing certain \(-0\.02 of general tasks\)\.",
            0.0,
        ),
        (
            {
                "earlier_levels": [{"level": 2, "gain": row(-0.4, -0.5, -0.3)}],
                "general": {"gain": row(0.1, 0.05, 0.15)},
                "out_of_distribution": [{"where": "one level up", "accuracy": 0.5, "n": 20}],
            },
            r"s has lost 0\.40 of level 2 \(n = 100\), and is right in 50% one level up \(n = 20\)",
            -0.3,
        ),
        (
            {"variety": {"student": variety(["a"] * 9), "amplified": variety(list("abc") * 3)}},
            "gives 1 different answers where the amplified system gives 3",
            None,
        ),
    ],
)
def test_the_verdict_says_what_is_certain(
    changed: Mapping[str, Any], said: str, certain: float | None
) -> None:
    report = body(**changed)
    found = verdict("s", report)
    assert re.search(said, found), found
    assert forgotten(report) == certain
    gates = judge(GateConfig(forgetting=0.1), forgotten=certain)
    assert [gate.passed for gate in gates] == ([] if certain is None else [certain >= -0.1])


def test_the_suite_is_the_same_each_time_and_its_answers_can_be_read() -> None:
    pytest.importorskip("reasoning_gym")
    questions = general_questions(5)
    assert questions is not None
    again = general_questions(5) or ()
    assert [(each.question, each.answer) for each in questions] == [
        (each.question, each.answer) for each in again
    ]
    assert len({each.question for each in questions}) > 4 * len(SUITE)
    for each in questions:
        assert each.is_right(f"The answer is {each.answer}.")
        assert not each.is_right(None)
        assert not each.is_right("I do not know")
    assert last_number("12 and 1,300") == "1300"
    assert last_number("none") == ""


def forgetful(request: ChatRequest) -> str:
    """A base that knows a general answer, and a student of round 1 that only adds."""
    question = request.messages[-1][1]
    if question.endswith("=") and ":" not in question:
        return add(question)
    return "yes" if request.model == "base" else "12"


async def test_a_round_measures_what_its_student_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(n: int) -> list[General]:
        return [General("faith", f"Is {k} even?", "Yes", SUITE[0].read) for k in range(n)]

    monkeypatch.setattr(measuring, "general_questions", asked)
    monkeypatch.setattr(OpenRun, "serves_students", True)
    config = CONFIG.model_copy(update={"retention": RetentionConfig(questions=12)})
    run = OpenRun(RunFolder(tmp_path / "r"), client=ScriptedClient(forgetful))
    stages = Stages(config, Addition(), run, lambda *_: None)
    async with run:
        scores = await stages.evaluate(2, "student-r1")
        shared = {"system": "student", "split": "held_out", "n": 100, "ci95": [0, 1]}
        now = [
            {**shared, "round": 2, "level": level, "accuracy": 0.5, "model": "student-r2"}
            for level in (2, 3)
        ]
        past = {**shared, "round": 1, "level": 2, "accuracy": 0.9, "model": "student-r1"}
        done = [{"level": 2, "promoted": True, "by_level": [past]}]
        report = await measure_retention(stages, 2, scores, now, done)
        again = await measure_retention(stages, 2, scores, now, done)
    assert report == again == json.loads(json.dumps(report))
    assert report["of_amplified"]["value"] == 1.0
    (earlier,) = report["earlier_levels"]
    assert (earlier["level"], earlier["of"], earlier["gain"]["value"]) == (
        2, "student-r1", pytest.approx(-0.4),
    )  # fmt: skip
    assert report["general"]["base"]["accuracy"] == 1.0
    assert report["general"]["student"]["accuracy"] == 0.0
    assert report["general"]["by_task"] == {"faith": {"base": 1.0, "student": 0.0}}
    up, reworded = report["out_of_distribution"]
    assert (up["where"], up["accuracy"]) == ("one level up", 1.0)
    # It answers "Please answer this for me: …" with a number that is no sum.
    assert (reworded["where"], reworded["accuracy"]) == ("in another wording", 0.0)
    assert report["variety"]["student"] == report["variety"]["amplified"]
    assert report["forgotten"] < -0.5
    assert "has lost 0.40 of level 2 (n = 100) and 1.00 of general tasks" in report["verdict"]
    assert report["perplexity"] is None  # There is no student to load.


@pytest.mark.engine
def test_perplexity_is_that_of_each_reply_alone(tiny_base: Path, tmp_path: Path) -> None:
    """Batches of different lengths, padded, against one row after another."""
    import torch
    from peft import PeftModel

    from reflux.finetune.base_model import load_base
    from reflux.finetune.bases import Base
    from reflux.finetune.configs.run import BaseConfig
    from reflux.finetune.data.encoding import encode_rows
    from reflux.finetune.retention.perplexity import perplexities
    from reflux.finetune.train.forward import BATCH
    from reflux.finetune.train.sft import train

    rows = [
        {
            "prompt": [{"role": "user", "content": "?" * (1 + index % 5)}],
            "completion": [{"role": "assistant", "content": "a b c " * (1 + index % 3)}],
        }
        for index in range(BATCH + 3)
    ]
    base = Base(BaseConfig(model=str(tiny_base)), given=tiny_base)
    train(rows, base, tmp_path, sft={"max_steps": 3, "per_device_train_batch_size": 4})
    found = perplexities(base, tmp_path, rows)
    assert found is not None
    model, tokenizer = load_base(tiny_base)
    for key in ("base", "student"):
        model = PeftModel.from_pretrained(model, str(tmp_path)) if key == "student" else model
        total, n = 0.0, 0
        for sequence in encode_rows(rows, tokenizer):
            ids, labels = torch.tensor([sequence["input_ids"]]), sequence["labels"]
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0].float().log_softmax(-1)
            for place, label in enumerate(labels[1:]):
                if label != -100:
                    total -= float(logits[place, label])
                    n += 1
        assert found[key] == pytest.approx(math.exp(total / n), rel=2e-2)
        assert found["tokens"] == n
    assert found["base"] != found["student"]
    assert 0 < found["divergence"] < 1
    assert perplexities(base, tmp_path, []) is None
