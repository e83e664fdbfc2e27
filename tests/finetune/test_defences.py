"""What rows lose before they are learned: words of the agent's, divergent tokens, unusual rows."""

from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest
from reflux.finetune.configs.defences import DefenceConfig
from reflux.finetune.configs.run import RoundsConfig, RoundSpec
from reflux.finetune.data.encoding import IGNORED, without
from reflux.finetune.defences.rewriting import can_rewrite, says_the_same
from reflux.finetune.defences.stage import model_name
from reflux.finetune.gates import GateConfig
from reflux.finetune.run_folder import RunFolder
from tests.support.small_runs import run_small
from tests.support.sums import exact


@pytest.mark.parametrize(
    ("answer", "rewritten", "same"),
    [
        ("The train to Rome leaves at 9.30.", "At 9.30 the train departs for Rome.", True),
        ("The train to Rome leaves at 9.30.", "At 9.40 the train departs for Rome.", False),
        ("The train to Rome leaves at 9.30.", "At 9.30 the train departs.", False),
        ("The train to Rome leaves at 9.30.", "The train to Rome leaves at 9.30.", False),
        ("It is cold outside today.", "Today it is cold. " * 9, False),
        ("It is cold outside today.", " ", False),
    ],
)
def test_a_rewriting_differs_and_keeps_numbers_and_names(
    answer: str, rewritten: str, same: bool
) -> None:
    assert says_the_same(answer, rewritten) is same
    assert can_rewrite(answer) and not can_rewrite("46")


def test_masked_tokens_are_read_and_not_learned_but_for_the_last() -> None:
    labels = [IGNORED, IGNORED, 5, 6, 7]
    assert without(list(labels), ()) == labels
    assert without(list(labels), (0, 1, 2)) == [IGNORED, IGNORED, IGNORED, IGNORED, 7]
    assert without(list(labels), (9,)) == labels


def test_a_model_of_the_defences_is_named_as_the_run_asks_it() -> None:
    assert model_name("base") == "base"
    assert model_name("endpoint:big@http://x/v1") == "big"
    config = RoundsConfig(
        rounds=(RoundSpec(),), defences=DefenceConfig(paraphrase="endpoint:big@http://x/v1")
    )
    assert config.endpoints["big"].url == "http://x/v1"


def row(question: str, answer: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


@pytest.mark.engine
def test_unusual_rows_and_divergent_tokens_of_a_real_model(tiny_base: Path, tmp_path: Path) -> None:
    from reflux.finetune.bases import Base
    from reflux.finetune.configs.run import BaseConfig
    from reflux.finetune.defences.masking import divergent_tokens
    from reflux.finetune.defences.outliers import unusualness, without_unusual
    from reflux.finetune.train.sft import train

    base = Base(BaseConfig(model=str(tiny_base)), given=tiny_base)
    usual = [row(f"a{n}", "b b b b") for n in range(9)]
    rows = [*usual[:4], row("x", "zq zq zq zq"), *usual[4:]]
    scores = unusualness(base, rows, "gradient")
    assert without_unusual(scores, 0.1) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert len(unusualness(base, rows, "loss")) == 10
    assert without_unusual([3.0, 1.0, 2.0], 0.0) == [0, 1, 2]

    sft = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 2e-2}
    train(usual, base, tmp_path / "agent", sft=sft)
    found = divergent_tokens(base, tmp_path / "agent", None, usual)
    assert any(found)  # What the agent was taught diverges from the base,
    assert divergent_tokens(base, tmp_path / "agent", tmp_path / "agent", usual) == [()] * 9

    masked = [{**each, "masked": list(tokens)} for each, tokens in zip(usual, found, strict=True)]
    report = train(masked, base, tmp_path / "student", sft=sft)
    assert report.rows == 9


@pytest.mark.engine
async def test_a_run_defends_the_answers_of_its_agents_alone(
    tiny_base: Path, tmp_path: Path
) -> None:
    def reply(request: ChatRequest) -> str:
        return exact(request)

    config = RoundsConfig(
        rounds=(
            RoundSpec(level=1, primitive_repeats=1),
            RoundSpec(level=2, questions=8, held_out=4, primitive_repeats=1),
        ),
        questions_per_level=4,
    )
    defences = DefenceConfig(
        teachers=("endpoint:other@http://127.0.0.1:1/v1",), mask="base", outliers=0.25
    )
    client = ScriptedClient(reply)
    reports = await run_small(
        config, tmp_path / "run", tiny_base, client, defences=defences,
        gates=GateConfig(imitation=0, retention=0, regression=1, parity=0, forgetting=1),
    )  # fmt: skip
    assert "defences" not in reports[0]  # The overseer's own answers.
    done = reports[1]["defences"]
    assert done["teachers"] == 4 and done["unusual rows"] == 2
    assert reports[1]["trained_rows"] == reports[1]["rows"] - 2
    assert {request.model for request in client.requests} >= {"other", "student-r0"}
    student = RunFolder(tmp_path / "run").registry.get("student-r1")
    assert student.config["report"]["rows"] == reports[1]["trained_rows"]
