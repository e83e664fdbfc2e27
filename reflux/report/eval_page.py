"""An evaluation on disk: `eval.jsonl`, `eval.json` and `eval.html`, a page without dependencies.

The page shows texts of models and users as text, and its policy forbids scripts and addresses.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reflux.agents.files import write_json, write_whole
from reflux.graphs.evals.answers import Answered
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.results import Results
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import load_tree
from reflux.report.eval_charts import charts
from reflux.report.eval_tables import figures, title
from reflux.report.terminal import counted, html_text, printable

MAX_FAILURES = 50
"""Of each system on the page; `eval.jsonl` has all."""
MAX_NODES = 400
"""Of one tree on the page."""
MAX_CHARS = 2_000
"""Of one text on the page."""


def write_report(
    folder: Path,
    results: Results,
    eval_task: EvalTask,
    store: TraceStore,
    source: Mapping[str, Any],
) -> None:
    """Write the three files, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(asdict(answer) | {"expected": list(eval_task.true_answers(answer.question))})
        for answers in results.answers.values()
        for answer in answers
    ]
    write_whole(folder / "eval.jsonl", "".join(f"{line}\n" for line in lines))
    write_json(folder / "eval.json", dict(source) | results.to_json())
    write_whole(folder / "eval.html", page(results, eval_task, store, source))


def page(
    results: Results, eval_task: EvalTask, store: TraceStore, source: Mapping[str, Any]
) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "text": lambda text: Markup(html_text(text, MAX_CHARS)),  # noqa: S704 - it escapes
        "printable": printable,
        "counted": counted,
    }
    return environment.get_template("eval.html.jinja").render(
        title=title(results, source),
        charts=Markup(charts(results)),  # noqa: S704 - drawn by us, texts as paths
        figures=figures(results, source),
        failures=[
            (key, len(answers), *_failures(answers, eval_task, store))
            for key, answers in results.answers.items()
        ],
    )


def _failures(
    answers: Sequence[Answered], eval_task: EvalTask, store: TraceStore
) -> tuple[int, list[dict[str, Any]]]:
    """(number of wrong answers, the first `MAX_FAILURES` of them for the template)."""
    wrong = [answer for answer in answers if not answer.right]
    rows: list[dict[str, Any]] = []
    for answer in wrong[:MAX_FAILURES]:
        tree = load_tree(store, answer.trajectory)
        nodes = list(islice(tree.walk(), MAX_NODES + 1))
        rows.append(
            {
                "answer": answer,
                "expected": " or ".join(eval_task.true_answers(answer.question)),
                "tree": tree,
                "paths": {node.path for node in nodes[:MAX_NODES]},
                "cut": len(nodes) > MAX_NODES,
            }
        )
    return len(wrong), rows
