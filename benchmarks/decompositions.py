"""Decompositions that lose what a question is about: how many the rules find, and how many sound
ones they refuse.

Labelled rows lie in `tests/support/decompositions.jsonl`: steps of the scripted overseers of the
shipped tasks (`python -m benchmarks.decompositions --draw` draws them anew), replies of a 0.5B
model as overseer to our prompt, and some written by hand, both labelled by reading. The rules were
made on the half of the questions whose digest is even, and are judged on the other half.
"""

import argparse
import asyncio
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.report import Claim, Report
from benchmarks.router import by_capital, by_continent
from reflux.agents.overseers.decomposition import decomposition_problems
from reflux.agents.overseers.particulars import read
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.tools.protocol import Tool
from reflux.agents.types import Ask, Exchange, SubQuestion
from reflux.graphs.evals.metrics import wilson
from reflux.tasks import task_named
from reflux.tasks.gym import offline_package
from reflux.tasks.multihop import WORDS

ROWS = Path(__file__).parent.parent / "tests" / "support" / "decompositions.jsonl"
DRAWN = {
    "addition": (4, 20), "multiplication": (3, 24), "chain_sum": (1, 30), "products": (2, 24),
    "number_sorting": (1, 24), "number_filtering": (1, 24), "spell_backward": (2, 20),
    "letter_counting": (2, 20), "time_intervals": (2, 24), "needle_haystack": (1, 24),
    "family_relationships": (1, 24), "multihop": (2, 60),
}  # fmt: skip
"""Level of each task, and how many steps are drawn from it."""
FACTS = 30
"""Steps drawn from each of the router benchmark's two overseers, whose steps depend on another."""


@dataclass(frozen=True)
class Row:
    """A labelled step."""

    question: str
    transcript: tuple[Exchange, ...]
    batch: Ask
    good: bool
    source: str
    """The task, `model`, or `hand`."""

    @property
    def held_out(self) -> bool:
        """True for the half on which the rules were not made; one question is in one half."""
        return hashlib.sha256(self.question.encode()).digest()[0] % 2 == 1

    @property
    def found(self) -> bool:
        """True if the rules find a problem."""
        return bool(decomposition_problems(self.question, self.transcript, self.batch))

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON types; `transcript` only where there is one."""
        asked = [
            [sub.text, list(sub.needs), *([sub.to] if sub.to else [])]
            for sub in self.batch.subquestions
        ]
        said = [[each.question, each.answer] for each in self.transcript]
        body: dict[str, Any] = {"source": self.source, "good": self.good, "question": self.question}
        return body | ({"transcript": said} if said else {}) | {"ask": asked}

    @staticmethod
    def from_json(body: dict[str, Any]) -> "Row":
        """The inverse of `to_json`."""
        asked = (SubQuestion(text, tuple(needs), *to) for text, needs, *to in body["ask"])
        said = (Exchange(question, answer) for question, answer in body.get("transcript", ()))
        return Row(body["question"], tuple(said), Ask(tuple(asked)), body["good"], body["source"])


def rows(path: Path = ROWS) -> list[Row]:
    """All labelled rows."""
    return [Row.from_json(json.loads(line)) for line in path.read_text("utf-8").splitlines()]


async def drawn(seed: int) -> list[Row]:
    """Sound steps of scripted overseers on held-out questions, with true answers to what they ask.

    Formulas lose their tool, so that they are judged as questions to a copy.
    """
    found: list[Row] = []
    for name, (level, count) in DRAWN.items():
        task = task_named(name)
        steps: list[Row] = []
        for question in task.sample(count, level, "held_out", seed):
            steps += await _steps(name, question, task.overseers()[0], task.tools())
        found += steps[:count]
    for name, step, form in (
        ("continent", by_capital, "On which continent is {}?"),
        ("capital", by_continent, "What is the capital of {}?"),
    ):
        for country in sorted(_countries())[: 3 * FACTS : 3]:
            found += await _steps(name, form.format(country), ScriptedOverseer(name, step), {})
    return found


async def _steps(
    source: str, question: str, overseer: Overseer, tools: Mapping[str, Tool]
) -> list[Row]:
    """All batches that the overseer asks about the question, with what was known before each."""
    found: list[Row] = []
    transcript: list[Exchange] = []
    while True:
        context: Any = SimpleNamespace(question=question, transcript=transcript, may_ask=True)
        try:
            step = await overseer.act(context)
        except ValueError:  # A name in the form of another one, which the script does not read.
            return found
        if not isinstance(step, Ask) or not step.subquestions:
            return found
        asked = [
            replace(s, to="" if s.to == "tool:calculator" else s.to) for s in step.subquestions
        ]
        found.append(Row(question, tuple(transcript), Ask(tuple(asked)), True, source))
        answers: dict[int, str] = {}
        for index, sub in enumerate(step.subquestions):
            text = sub.filled(answers)
            tool = tools.get(sub.to.removeprefix("tool:"))
            answers[index] = (await tool.answer(text)).text if tool else _truth(text)
            transcript.append(Exchange(text, answers[index]))


def _truth(question: str) -> str:
    """The answer to a sub-question of one of the scripted overseers."""
    words = question.split()
    if sum_of := re.fullmatch(r"(\d+)([+*])(\d+)(\+1)?=", question):  # Digits in reverse.
        a, b = int(sum_of[1][::-1]), int(sum_of[3][::-1])
        length = len(sum_of[1]) + (len(sum_of[3]) if sum_of[2] == "*" else 1)
        value = a * b if sum_of[2] == "*" else a + b + bool(sum_of[4])
        return str(value).zfill(length)[::-1]
    if question.startswith("Which country has "):
        capital = question.removeprefix("Which country has ").removesuffix(" as its capital?")
        return next(name for name, (its, _) in _countries().items() if its == capital)
    if question.startswith("Who is this sentence about? "):
        return words[5]
    country = question.removesuffix(" is a country in which continent?")
    if country in _countries():
        return _countries()[country][1]
    return {"Is": "male", "What": "Lima"}.get(words[0], "Europe")


@cache
def _countries() -> dict[str, tuple[str, str]]:
    """Capital and continent by country."""
    known = offline_package("countryinfo").all_countries()
    return {
        str(each.name()).title(): (str(each.capital()), WORDS[str(each.region())])
        for each in known
        if each.capital() and each.region() in WORDS
    }


def rates(labelled: Sequence[Row]) -> dict[str, Any]:
    """Precision and recall of the rules, with Wilson intervals; what is bad is to be found."""
    found = [row for row in labelled if row.found]
    bad = [row for row in labelled if not row.good]
    right = sum(not row.good for row in found)
    return {
        "good": len(labelled) - len(bad),
        "bad": len(bad),
        "refused good": len(found) - right,
        "precision": right / len(found) if found else None,
        "precision 95%": list(wilson(right, len(found))) if found else None,
        "recall": right / len(bad) if bad else None,
        "recall 95%": list(wilson(right, len(bad))) if bad else None,
    }


def microseconds(labelled: Sequence[Row], repeats: int = 3) -> list[float]:
    """Processor time of each row's check, which reads its texts anew, the least of `repeats`; the
    batch is filled up to eight sub-questions."""
    times: list[float] = []
    for row in labelled:
        filled = tuple(
            replace(sub, text=f"{sub.text} {index}")  # None is the same as another.
            for index, sub in enumerate((row.batch.subquestions * 8)[:8])
        )
        runs: list[float] = []
        for _ in range(repeats):
            read.cache_clear()
            begun = time.process_time()
            decomposition_problems(row.question, row.transcript, Ask(filled))
            runs.append(1e6 * (time.process_time() - begun))
        times.append(min(runs))
    return times


def run(report: Report) -> None:
    """One row for each source and for each half."""
    labelled = rows()
    held_out = [row for row in labelled if row.held_out]
    development = [row for row in labelled if not row.held_out]
    parts = {"held out": held_out, "development": development}
    for name in dict.fromkeys(row.source for row in held_out):
        parts[f"held out: {name}"] = [row for row in held_out if row.source == name]
    for name, part in parts.items():
        report.rows.append({"rows": name} | rates(part))
    total = report.rows[0]
    refused = sum(row.found for row in held_out)
    times = sorted(microseconds(labelled))
    for claim in (
        Claim("precision: refused steps that are bad", total["precision"], ">=", 0.9, refused,
              tuple(total["precision 95%"])),
        Claim("recall: bad steps that are refused", total["recall"], ">=", 0.8, total["bad"],
              tuple(total["recall 95%"])),
        Claim("µs for eight sub-questions, median", times[len(times) // 2], "<=", 1_000,
              len(times), (times[0], times[-1])),
        Claim("µs for eight sub-questions, 99th percentile", times[len(times) * 99 // 100], "<=",
              1_000, len(times), (times[0], times[-1])),
    ):  # fmt: skip
        report.claims.append(claim)


def main(quick: bool) -> None:
    """Judge the rules, and report."""
    report = Report("decompositions", seed=0, quick=quick)
    run(report)
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--draw", action="store_true", help="print the scripted rows, and stop")
    given = parser.parse_args()
    if given.draw:
        for each in asyncio.run(drawn(0)):
            print(json.dumps(each.to_json(), ensure_ascii=False))
    else:
        main(given.quick)
