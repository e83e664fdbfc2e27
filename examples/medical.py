"""A diagnosis by parallel specialists: the example of the seed's section 8.4.1, step by step.

    case ─► symptoms ─► the handbook, one look-up each ─► conditions, by a panel of specialists
         ─► tests, one look-up for each condition ─► one report with its sources ─► a reviewer

H is a script that divides the work; X is asked as specialists with a persona each, and what they
say of conditions is combined. The handbook is a folder of invented ailments, looked up by a tool.
A reviewer, a person, approves the report or edits it: what is approved is what a student learns.

    python examples/medical.py "Wim, 34: fever every evening, aching knees, green fingernails."
"""

import asyncio
import re
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import reflux
from reflux import Answer, Ask, Exchange, Expert, SubQuestion
from reflux.agents.tools.documents import Documents
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore

HANDBOOK = Path(__file__).with_name("handbook")
SPECIALISTS = (
    Expert("history", system="You are a nurse. Name the symptoms, separated by commas. Be brief."),
    Expert("internist", system="You are an internist. Name one condition from the passages."),
    Expert("sceptic", system="You doubt first guesses. Name one condition from the passages."),
    Expert("generalist", system="You are a family doctor. Name one condition from the passages."),
)
PANEL = ("internist", "sceptic", "generalist")
CASE = "Wim, 34: fever every evening, aching knees, green fingernails, a dry cough."


def titles(passages: str) -> list[str]:
    """Conditions that the passages are about: their files' names, most often found first."""
    found = re.findall(r"\[([a-z-]+)\.md:[\d-]+\]", passages)
    return sorted(dict.fromkeys(found), key=lambda name: -found.count(name))


def sources(said: Sequence[Exchange]) -> list[str]:
    """Every passage that was cited, file and lines, once."""
    cited = re.findall(r"\[([^\]\s]+:\d+-\d+)\]", "\n".join(each.answer or "" for each in said))
    return sorted(dict.fromkeys(cited))


def diagnose(case: str, said: Sequence[Exchange], may_ask: bool) -> reflux.Step:
    """H: five steps, each of which asks for what the one before has found."""
    if not may_ask:
        return reflux.PASS
    if not said:
        return Ask((SubQuestion(f"Symptoms in this case: {case}", to="expert:history"),))
    symptoms = named_symptoms(case, said[0].answer or "")
    if len(said) == 1:
        return Ask(tuple(SubQuestion(each, to="tool:documents") for each in symptoms))
    looked_up = said[1 : 1 + len(symptoms)]
    passages = "\n\n".join(each.answer or "" for each in looked_up)
    candidates = titles(passages)[:3]
    if len(said) == 1 + len(symptoms):
        asked = f"Case: {case}\n\nPassages:\n{passages[:900]}\n\nWhich condition fits best?"
        return Ask((SubQuestion(asked, to=f"experts:{','.join(PANEL)}"),))
    if len(said) == 2 + len(symptoms):
        return Ask(
            tuple(
                SubQuestion(f"test confirms {name.replace('-', ' ')}", to="tool:documents")
                for name in candidates
            )
        )
    return Answer(report(case, symptoms, candidates, said))


def named_symptoms(case: str, answer: str) -> list[str]:
    """What the nurse named, as far as it stands in the case: a symptom is never invented."""
    heard = [part.strip(" .-\n").lower() for part in re.split(r"[,;\n]", answer)]
    told = case.partition(":")[2] or case
    known = [part.strip(" .").lower() for part in told.split(",")]
    words = {word for part in heard for word in re.findall(r"[a-z]+", part)}
    kept = [part for part in known if words & set(re.findall(r"[a-z]+", part))]
    return kept or known


def report(
    case: str, symptoms: Sequence[str], candidates: Sequence[str], said: Sequence[Exchange]
) -> str:
    """One report: what was found, what the specialists say, what to test, and where it stands."""
    opinion = said[1 + len(symptoms)].answer or "no agreement"
    named = [name.replace("-", " ") for name in candidates]
    tests = said[2 + len(symptoms) :]
    # A look-up finds passages on other conditions as well.
    found = [
        line
        for each in tests
        for line in re.findall(
            r"The \w+ test confirms[^.:]*[.:][^.]*\.", " ".join((each.answer or "").split())
        )
        if any(f"confirms {name}" in line.replace("'", "") for name in named)
    ]
    return "\n".join(
        [
            f"Case: {case}",
            f"Symptoms: {', '.join(symptoms)}",
            f"Conditions to consider: {', '.join(named)}",
            f"The specialists: {opinion}",
            "Tests: " + (" ".join(dict.fromkeys(found)) or "none found"),
            f"Sources: {', '.join(sources(said))}",
        ]
    )


H = reflux.ScriptedOverseer("diagnose", diagnose)


def ward() -> dict[str, Any]:
    """Who and what H can turn to."""
    return {
        "experts": SPECIALISTS,
        "tools": {"documents": Documents(HANDBOOK)},
        "combiner": reflux.Consensus(max_tokens=32),
        "max_tokens": 32,
    }


async def diagnosis(case: str, client: reflux.ChatClient | None = None) -> reflux.Amplification:
    """The report on one case; the embedded model answers where no client is given."""
    return await reflux.amplify(case, H, client=client, **ward())


@asynccontextmanager
async def reviewed(
    folder: Path, client: reflux.ChatClient
) -> AsyncGenerator[reflux.InterruptibleRun]:
    """The same, but no report leaves before a reviewer has approved or edited it.

    The reviewer's comment is kept with the report, as a judgement `review`.
    """
    store = TraceStore(folder / "traces.db")
    h = reflux.Reviewed(H, when="answers")
    context = reflux.AmplifyContext(RecordedClient(client, store), "base", (h,), **ward())
    try:
        async with reflux.open_interruptible_run(
            context, folder / "checkpoints.db"
        ) as interruptible_run:
            yield interruptible_run
    finally:
        store.close()


if __name__ == "__main__":
    print(asyncio.run(diagnosis(" ".join(sys.argv[1:]) or CASE)).answer)
