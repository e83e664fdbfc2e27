"""A prompted model as the overseer: it divides a question, copies answer, it combines.

    export OPENAI_BASE_URL=http://127.0.0.1:11434/v1 OPENAI_API_KEY=none
    python examples/model_overseer.py llama3.2 "Which is older, Rome or Kyoto?"

A question that the model cannot divide goes to a copy undivided, and the tree says why.
"""

import asyncio
import os
import sys

import reflux


async def ask(question: str, client: reflux.ChatClient, model: str) -> reflux.Amplification:
    """Ask one question: `model` divides it, and copies of it answer the parts."""
    return await reflux.amplify(
        question,
        reflux.ModelOverseer(fanout=4),
        client=client,
        model=model,
        limits=reflux.Limits(depth=1, calls=30, seconds=120),
        max_tokens=200,
    )


async def main(model: str, question: str) -> None:
    """Ask the endpoint named by the environment, and print each question with its answer."""
    client = reflux.OpenAIClient(os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"])
    try:
        result = await ask(question, client, model)
    finally:
        await client.close()
    for node in result.tree.walk():
        print("  " * node.path.count("/") + f"{node.question!r} -> {node.answer!r}")
    print(result.answer, result.outcome["spent"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], " ".join(sys.argv[2:])))
