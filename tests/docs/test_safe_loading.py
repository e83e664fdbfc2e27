"""No source of ours loads what may run code of a file: a model's own code, pickles, YAML tags."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documented import ROOT

PACKAGES = ("agents", "graphs", "finetune", "reflux")
SOURCES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.is_symlink()
)
RUNS_CODE = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "joblib.load", "dill.load",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "shelve.open",
    "eval", "exec",
}  # fmt: skip


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def loads_a_class_by_its_config(name: str) -> bool:
    """`transformers.AutoTokenizer.from_pretrained`, say, which may find its class in the folder."""
    owner, _, method = name.rpartition(".")
    return method in ("from_pretrained", "from_config") and owner.split(".")[-1].startswith("Auto")


def test_no_call_trusts_code_of_a_model() -> None:
    found = 0
    for path in SOURCES:
        for name, call in calls(path):
            if loads_a_class_by_its_config(name):
                found += 1
                given = {each.arg: ast.unparse(each.value) for each in call.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
    assert found > 5


def test_no_call_reads_a_format_that_runs_code() -> None:
    found = [(path, call.lineno, name) for path in SOURCES for name, call in calls(path)]
    assert [each for each in found if each[2] in RUNS_CODE] == []


@pytest.mark.parametrize("name", ["transformers.AutoModel.from_pretrained", "AutoX.from_config"])
def test_calls_that_may_trust_are_known(name: str) -> None:
    assert loads_a_class_by_its_config(name)
    assert not loads_a_class_by_its_config("PeftModel.from_pretrained")
