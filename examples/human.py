"""A human in the loop: a model proposes each step, a human approves or edits it.

The question waits in two files, for days if needed. Run the program once to see the proposal, and
again with a reply; nothing that was finished is asked a second time.

    python examples/human.py ask "Plan a day in Lisbon"
    python examples/human.py reply approve
    python examples/human.py reply "answer: Walk, eat, sleep."
"""

import asyncio
import sys
from pathlib import Path

import reflux
from reflux.agents.overseers.scripted import parse_reply, step_text
from reflux.graphs.amplify.interrupts import Answered
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore

QUESTION_ID = "example"


async def advance(
    folder: Path, client: reflux.ChatClient, question: str = "", reply: str = ""
) -> Answered:
    """Ask the question, or reply to the first waiting form; return the progress."""
    store = TraceStore(folder / "traces.db")
    context = reflux.AmplifyContext(
        RecordedClient(client, store),
        "base",
        [reflux.Reviewed(reflux.ModelOverseer(), when="root")],
        limits=reflux.Limits(depth=1),
        max_tokens=100,
    )
    try:
        async with reflux.open_interruptible_run(
            context, folder / "checkpoints.db"
        ) as interruptible_run:
            if question:
                await store.add_question({"id": QUESTION_ID, "text": question})
                return await interruptible_run.ask(question, QUESTION_ID)
            first, *_ = (await interruptible_run.look(QUESTION_ID)).pending
            return await interruptible_run.reply(QUESTION_ID, {first.id: parse_reply(reply)})
    finally:
        store.close()


async def main(verb: str, text: str) -> None:
    """Run one step of the conversation on the embedded default model."""
    from reflux.agents.clients.llama_cpp import LlamaCppClient, ModelFiles, default_gguf

    client = LlamaCppClient(lambda _: ModelFiles(default_gguf()))
    try:
        turn = {"question": text} if verb == "ask" else {"reply": text}
        progress = await advance(Path("runs/human"), client, **turn)
    finally:
        await client.close()
    for pending in progress.pending:
        proposal = pending.form.get("proposal")
        print(f"waits: {step_text(proposal) if proposal else pending.form['question']}")
    if progress.outcome is not None:
        print(progress.outcome["answer"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], " ".join(sys.argv[2:])))
