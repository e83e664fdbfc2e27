"""Configs: what ships is valid, what is wrong is named."""

from pathlib import Path

import pytest

from reflux.agents.clients.llama_cpp import EngineConfig
from reflux.agents.errors import UsageError
from reflux.cli.runs.rounds import settle_config, shipped_config
from reflux.finetune.configs.run import BatchedConfig, config_from, read_config
from reflux.finetune.gates import GateConfig, judge
from reflux.finetune.run_folder import RunFolder


@pytest.mark.parametrize("name", ["demo", "long"])
def test_shipped_configs_are_valid(name: str) -> None:
    assert read_config(shipped_config(name)).rounds[0].level == 1


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"rounds": [{"level": 1}], "colour": 1}, "colour"),
        ({"rounds": [{"level": 1, "qestions": 1}]}, r"rounds\.0\.qestions"),
        ({"rounds": [{"level": 1}], "limits": {"dept": 2}}, "dept"),
        ({"rounds": [{"level": 1}], "engine": "vllm"}, "engine"),
        ({"rounds": [{"level": 1}], "llama_cpp": {"slots": 2}}, r"llama_cpp\.slots"),
        ({"rounds": [{"level": 1}], "batched": {"rows": 0}}, r"batched\.rows"),
        ({"rounds": []}, "rounds"),
        ({"rounds": 0}, "0 rounds are not between 1 and 100"),
        ({"rounds": 1, "questions": "a.jsonl", "task": "addition"}, "either a task or questions"),
        ({"rounds": 1, "check": "json"}, "check is for questions: a task has its own"),
        ({"rounds": 1, "overseer": {"name": "plain", "model": "m"}}, "not of 'plain'"),
        (None, "config"),
        ([1], "config"),
    ],
)
def test_a_wrong_config_names_the_key(data, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        config_from(data, "x.yaml")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"votes": {"max_votes": 0}}, r"votes\.max_votes is 0; it must be at least 1"),
        ({"votes": {"rule": {"kind": "ahead", "margin": 0}}}, r"votes\.rule\.margin is 0"),
        ({"votes": {"rule": {"kind": "sprt", "share": 1.0}}}, "more than 0.5 and less than 1"),
        ({"votes": {"rule": {"kind": "sprt", "against": 0.9}}}, r"votes\.rule\.share is 0\.8"),
        ({"votes": {"rule": {"kind": "posterior", "right": 0}}}, r"votes\.rule\.right is 0"),
        ({"votes": {"rule": {"kind": "weighted", "error": 0}}}, r"votes\.rule\.error is 0"),
        ({"votes": {"min_logprob": float("nan")}}, "it must be a number"),
        ({"votes": {"variants": [{"wording": "Go on."}]}}, "write {question} where"),
        ({"votes": {"variants": [{"weight": 0}]}}, r"votes\.variants\.weight is 0"),
        ({"limits": {"calls": -5}}, r"limits\.calls is -5; it must be at least 0"),
        ({"limits": {"seconds": float("nan")}}, r"limits\.seconds is nan"),
        (
            {"spend_limit": {"prices": {"base": {"prompt": -1}}}},
            r"spend_limit\.prices\.prompt is -1",
        ),
        ({"spend_limit": {"money": 1}}, r"no model has a price: add spend_limit\.prices"),
        (
            {"base": {"attn_implementation": "spda"}},
            r"base\.attn_implementation: .*eager\|sdpa",
        ),
        ({"limits": {"money": 1}}, r"no model has a price: add spend_limit\.prices"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(section, says: str) -> None:
    with pytest.raises(UsageError, match=f"^x.yaml: .*{says}"):
        config_from({"rounds": [{"level": 1}], **section}, "x.yaml")


def test_of_a_rule_that_is_named_only_its_own_faults_are_told() -> None:
    rule = {"kind": "sprt", "margin": 2}
    with pytest.raises(UsageError, match=r"rule\.sprt\.margin: unknown key") as refused:
        config_from({"rounds": [{"level": 1}], "votes": {"rule": rule}}, "x.yaml")
    assert "majority" not in str(refused.value)
    with pytest.raises(UsageError, match=r"rule: kind is one of maj.*weighted, not 'most'") as kind:
        config_from({"rounds": [{"level": 1}], "votes": {"rule": {"kind": "most"}}}, "x.yaml")
    assert "AheadBy" not in str(kind.value)
    with pytest.raises(UsageError, match=r"votes\.rule: name its kind"):
        config_from({"rounds": [{"level": 1}], "votes": {"rule": {"margin": 2}}}, "x.yaml")


@pytest.mark.parametrize("kind", ["majority", "ahead", "sprt", "posterior", "weighted"])
def test_every_rule_can_be_named_and_comes_back_from_the_run_folder(
    tmp_path: Path, kind: str
) -> None:
    votes = {
        "rule": {"kind": kind, "max_votes": 9},
        "variants": [{"system": "Be brief.", "weight": 2}],
    }
    config = config_from({"rounds": [{"level": 1}], "votes": votes}, "x.yaml")
    assert config.votes.rule is not None
    assert (config.votes.rule.kind, config.votes.stopping.max_votes) == (kind, 9)
    folder = RunFolder(tmp_path / "r")
    folder.save_config(config.model_dump(mode="json"))
    assert config_from(folder.load_config(), "x.yaml") == config


def test_files_that_are_no_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no config"):
        read_config(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="not YAML"):
        read_config(tmp_path / "x.yaml")


def test_a_run_is_not_overwritten_and_keeps_its_config(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    config = read_config(shipped_config("demo"))
    folder.save_config(config.model_dump(mode="json"))
    with pytest.raises(UsageError, match="--resume"):
        settle_config(folder, None, resume=False)
    assert settle_config(folder, None, resume=True) == config
    assert settle_config(folder, shipped_config("demo"), resume=True) == config
    with pytest.raises(UsageError, match="was begun with"):
        settle_config(folder, shipped_config("long"), resume=True)


def test_a_base_of_the_command_line_keeps_how_the_config_loads_it(tmp_path: Path) -> None:
    file, folder = tmp_path / "c.yaml", RunFolder(tmp_path / "r")
    file.write_text("rounds: 1\nbase: {model: a/b, revision: v1, dtype: float16, thinking: true}\n")
    base = settle_config(folder, file, resume=False, base="c/d").base
    assert (base.model, base.revision, base.dtype, base.thinking) == ("c/d", None, "float16", True)


def test_new_runs_are_batched_unless_the_config_says_otherwise() -> None:
    config = config_from({"rounds": [{"level": 1}]}, "x.yaml")
    assert config.engine_settings == BatchedConfig()
    config = config_from({"rounds": [{"level": 1}], "engine": "llama.cpp"}, "x.yaml")
    assert config.engine_settings == EngineConfig()
    given = {"engine": "llama.cpp", "llama_cpp": {"context": 99}, "batched": {"rows": 8}}
    config = config_from({"rounds": [{"level": 1}], **given}, "x.yaml")
    assert config.engine_settings == EngineConfig(context=99)
    assert config.batched == BatchedConfig(rows=8)


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    folder.save_config({})
    folder.config_path.write_text("format: 99\n")
    with pytest.raises(UsageError, match="another version"):
        folder.load_config()


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    with first.lock(), pytest.raises(UsageError, match="another process"):
        second.lock()
    second.lock().close()


def test_gates_stop_a_student_that_forgot_or_drifted() -> None:
    config = GateConfig(divergence=2.0)
    good = judge(config, amplified=0.99, student=0.95, before=(0.98, 0.97), lost={"base": 0.2})
    assert all(gate.passed for gate in good)
    for worse in (
        {"student": 0.5},
        {"before": (0.98, 0.7)},
        {"lost": {"base": 0.6}},
        {"lost": {"base": 0.2, "control": 0.2}},
        {"divergence": 3.0},
    ):
        measured = {"amplified": 0.99, "student": 0.95, "before": (0.98, 0.97)}
        assert not all(gate.passed for gate in judge(config, **(measured | worse)))
    assert not all(gate.passed for gate in judge(config, imitation=0.9))


def test_the_gate_of_an_older_version_is_left_out_of_its_runs_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r")
    old = {"rounds": [{}], "canaries": 7, "gates": {"canary": 0.2, "retention": 0.5}}
    folder.save_config(old)
    config = folder.config()
    assert (config.gates.retention, config.canaries.prompts, config.canaries.probes) == (0.5, 7, 7)
    with pytest.raises(UsageError, match=r"gates\.canary: unknown key"):
        config_from(old, "x.yaml")
