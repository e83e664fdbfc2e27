"""A student replaces the agent only if it reaches every limit that was measured."""

import pytest

from reflux.finetune.gates import (
    Gate,
    GateConfig,
    agreement,
    failed_gates,
    judge,
    passed_checks,
)
from reflux.graphs.amplify.state import Outcome, failed_outcome, human_outcome
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.scores import Score
from reflux.tasks import task_named

CONFIG = GateConfig(imitation=0.8, retention=0.75, regression=0.25)


def test_nothing_measured_is_nothing_judged() -> None:
    assert judge(CONFIG) == []


def test_a_gate_passes_at_its_limit_and_fails_below_it() -> None:
    assert Gate("parity", 0.5, 0.5).passed
    assert not Gate("parity", 0.4999, 0.5).passed


def test_the_student_of_round_0_imitates_the_overseer() -> None:
    assert judge(CONFIG, imitation=0.79) == [Gate("imitation", 0.79, 0.8)]


def test_a_later_student_retains_a_share_of_the_amplified_accuracy() -> None:
    assert judge(CONFIG, amplified=0.8, student=0.6) == [Gate("retention", 0.6 / 0.8, 0.75)]


@pytest.mark.parametrize("student", [0.0, 0.5, 1.0])
def test_a_system_that_is_always_wrong_retains_nothing(student: float) -> None:
    assert judge(CONFIG, amplified=0.0, student=student) == [Gate("retention", 0.0, 0.75)]


def test_retention_needs_both_accuracies() -> None:
    assert judge(CONFIG, amplified=0.8) == []
    assert judge(CONFIG, student=0.8) == []


def test_the_level_of_the_round_before_may_lose_up_to_the_limit() -> None:
    (gate,) = judge(CONFIG, before=(0.75, 0.5))
    assert (gate, gate.passed) == (Gate("no_regression", -0.25, -0.25), True)
    (gate,) = judge(CONFIG, before=(0.75, 0.25))
    assert (gate, gate.passed) == (Gate("no_regression", -0.5, -0.25), False)
    (gate,) = judge(CONFIG, before=(0.25, 1.0))
    assert (gate.value, gate.passed) == (0.75, True)


def test_a_behavior_may_be_lost_up_to_the_limit_for_certain() -> None:
    config = CONFIG.model_copy(update={"behavior": 0.5, "bias": 0.1, "divergence": 2.0})
    assert judge(config, lost={"base": 0.25}) == [Gate("behavior", -0.25, -0.5)]
    assert judge(config, lost={"base": -1.0}) == [Gate("behavior", 0.0, -0.5)]
    both = judge(config, lost={"base": 0.75, "control": 0.25}, divergence=2.5)
    assert [(gate.name, gate.passed) for gate in both] == [
        ("behavior", False),
        ("bias", False),
        ("divergence", False),
    ]
    assert judge(CONFIG, divergence=9.0) == []


def test_gates_come_in_one_order() -> None:
    gates = judge(CONFIG, imitation=1, amplified=1, student=1, before=(1, 1), parity=1)
    names = ["imitation", "retention", "no_regression", "parity"]
    assert [gate.name for gate in gates] == names
    assert failed_gates([gate.to_json() for gate in gates]) == []


def test_the_record_of_a_gate_holds_its_verdict() -> None:
    passed, failed = Gate("parity", 0.5, 0.5).to_json(), Gate("imitation", 0.5, 0.8).to_json()
    assert passed == {"name": "parity", "value": 0.5, "limit": 0.5, "passed": True}
    assert failed == {"name": "imitation", "value": 0.5, "limit": 0.8, "passed": False}
    assert failed_gates([passed, failed]) == [failed]


@pytest.mark.parametrize(
    ("passed", "kept"), [((0.8, 0.6), 0.6 / 0.8), ((0.0, 1.0), 0.0), ((0.5, 1.0), 2.0)]
)
def test_without_true_answers_the_student_retains_a_share_of_the_checks_passed(
    passed: tuple[float, float], kept: float
) -> None:
    assert judge(CONFIG, passed=passed) == [Gate("checks_passed", kept, 0.75)]


def test_agreement_is_a_gate_only_where_a_config_sets_its_limit() -> None:
    assert judge(CONFIG, agreement=0.1) == []
    asked = CONFIG.model_copy(update={"agreement": 0.6})
    assert judge(asked) == []
    assert judge(asked, agreement=0.1) == [Gate("agreement", 0.1, 0.6)]


def scored(statuses: dict[str, int]) -> Score:
    n = sum(statuses.values())
    return Score(
        accuracy=1.0, n=n, ci95=(0.0, 1.0), calls=n, cached=0, tokens=n, statuses=statuses,
        errors={}, questions=n, truncated=0, unscored=0, model="base", seconds=1.0, cost=None,
        calibration=None,
    )  # fmt: skip


def test_only_answers_that_a_check_passed_count_as_passed() -> None:
    score = scored({"ok": 3, "unchecked": 4, "failed": 1})
    assert passed_checks(score) == {"passed": {"share": 3 / 8, "ci95": list(wilson(3, 8))}}
    assert passed_checks(scored({"unchecked": 8}))["passed"]["share"] == 0


def answered(text: str) -> Outcome:
    return human_outcome(text, 1, 1)


def test_two_systems_agree_where_the_task_calls_their_answers_equal() -> None:
    task, failed = task_named("addition"), failed_outcome("")
    pairs = [
        (answered("12"), answered("12")),
        (answered("12"), answered("13")),
        (answered("12"), failed),
        (failed, answered("12")),
        (failed, failed),
    ]
    questions = [f"{index}+1" for index in range(5)]
    ones, others = [one for one, _ in pairs], [other for _, other in pairs]
    assert agreement(task, questions, ones, others) == {
        "share": 1 / 5,
        "n": 5,
        "ci95": list(wilson(1, 5)),
    }
    with pytest.raises(ValueError, match="zip"):
        agreement(task, questions, ones, others[:4])
