"""A diagnosis by parallel specialists, the chapter's example of amplification (8.4.1).

    case ─► symptoms ─► one handbook search for each ─► conditions, by a panel of specialists
         ─► tests, one search for each condition ─► one report with its sources ─► a reviewer

The overseer is a script that divides the work. The agent answers as several specialists, each with
a persona, and a combiner merges their opinions. A tool searches the handbook, a folder of invented
ailments. A human reviewer approves or edits the report; students learn the approved report.

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
    """Conditions that the passages describe (their files' names), most frequent first."""
    names = re.findall(r"\[([a-z-]+)\.md:[\d-]+\]", passages)
    return sorted(dict.fromkeys(names), key=lambda name: -names.count(name))


def sources(transcript: Sequence[Exchange]) -> list[str]:
    """Each cited passage once, as file and lines."""
    text = "\n".join(exchange.answer or "" for exchange in transcript)
    return sorted(set(re.findall(r"\[([^\]\s]+:\d+-\d+)\]", text)))


def diagnose(case: str, transcript: Sequence[Exchange], may_ask: bool) -> reflux.Step:
    """Take one of five steps; each uses the answers to the one before."""
    if not may_ask:
        return reflux.PASS
    if not transcript:
        return Ask((SubQuestion(f"Symptoms in this case: {case}", to="expert:history"),))
    symptoms = named_symptoms(case, transcript[0].answer or "")
    if len(transcript) == 1:
        return Ask(tuple(SubQuestion(symptom, to="tool:documents") for symptom in symptoms))
    searches = transcript[1 : 1 + len(symptoms)]
    passages = "\n\n".join(search.answer or "" for search in searches)
    candidates = titles(passages)[:3]
    if len(transcript) == 1 + len(symptoms):
        question = f"Case: {case}\n\nPassages:\n{passages[:900]}\n\nWhich condition fits best?"
        return Ask((SubQuestion(question, to=f"experts:{','.join(PANEL)}"),))
    if len(transcript) == 2 + len(symptoms):
        return Ask(
            tuple(
                SubQuestion(f"test confirms {name.replace('-', ' ')}", to="tool:documents")
                for name in candidates
            )
        )
    return Answer(report(case, symptoms, candidates, transcript))


def named_symptoms(case: str, answer: str) -> list[str]:
    """Symptoms of the case that the nurse named; never a symptom that the case does not have."""
    named = [part.strip(" .-\n").lower() for part in re.split(r"[,;\n]", answer)]
    description = case.partition(":")[2] or case
    known = [part.strip(" .").lower() for part in description.split(",")]
    words = {word for part in named for word in re.findall(r"[a-z]+", part)}
    return [part for part in known if words & set(re.findall(r"[a-z]+", part))] or known


def report(
    case: str, symptoms: Sequence[str], candidates: Sequence[str], transcript: Sequence[Exchange]
) -> str:
    """One report: symptoms, conditions, the specialists' opinion, tests, and sources."""
    opinion = transcript[1 + len(symptoms)].answer or "no agreement"
    conditions = [name.replace("-", " ") for name in candidates]
    # A search also finds passages about other conditions.
    tests = [
        line
        for search in transcript[2 + len(symptoms) :]
        for line in re.findall(
            r"The \w+ test confirms[^.:]*[.:][^.]*\.", " ".join((search.answer or "").split())
        )
        if any(f"confirms {name}" in line.replace("'", "") for name in conditions)
    ]
    return "\n".join(
        [
            f"Case: {case}",
            f"Symptoms: {', '.join(symptoms)}",
            f"Conditions to consider: {', '.join(conditions)}",
            f"The specialists: {opinion}",
            "Tests: " + (" ".join(dict.fromkeys(tests)) or "none found"),
            f"Sources: {', '.join(sources(transcript))}",
        ]
    )


OVERSEER = reflux.ScriptedOverseer("diagnose", diagnose)


def resources() -> dict[str, Any]:
    """The experts and tools that the overseer may ask."""
    return {
        "experts": SPECIALISTS,
        "tools": {"documents": Documents(HANDBOOK)},
        "combiner": reflux.Consensus(max_tokens=32),
        "max_tokens": 32,
    }


async def diagnosis(case: str, client: reflux.ChatClient | None = None) -> reflux.Amplification:
    """Report on one case; without a client, the embedded model answers."""
    return await reflux.amplify(case, OVERSEER, client=client, **resources())


@asynccontextmanager
async def reviewed(
    folder: Path, client: reflux.ChatClient
) -> AsyncGenerator[reflux.InterruptibleRun]:
    """The same, but a reviewer approves or edits each report before it leaves.

    The record keeps the reviewer's comment as a judgement `review`.
    """
    store = TraceStore(folder / "traces.db")
    overseer = reflux.Reviewed(OVERSEER, when="answers")
    recorded_client = RecordedClient(client, store)
    context = reflux.AmplifyContext(recorded_client, "base", (overseer,), **resources())
    try:
        async with reflux.open_interruptible_run(
            context, folder / "checkpoints.db"
        ) as interruptible_run:
            yield interruptible_run
    finally:
        store.close()


if __name__ == "__main__":
    print(asyncio.run(diagnosis(" ".join(sys.argv[1:]) or CASE)).answer)
