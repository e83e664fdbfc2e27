"""What a model as overseer costs with 1, 2 and 3 levels of sub-questions, on chain sums.

With `scripted` every sum of several terms is halved at every level, which is the most that a model
could ask, and every answer is wrong, so that no decomposition is spared.

Claims: no question takes more calls than its limit, and calls grow less than levels would let them:
3 levels cost at most 4 times as much as one.
"""

import asyncio
import json
import re
from dataclasses import replace

from benchmarks.default_model import SCRIPTED, open_model, parser_of
from benchmarks.model_overseer import done
from benchmarks.natural_tasks import natural_tasks
from benchmarks.overseer_arms import TOKENS, scratch_context
from benchmarks.report import Claim, Report
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.types import ChatClient, ChatRequest
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.ask import Amplified

DEPTHS, LEVEL = (1, 2, 3), 2
TERM = re.compile(r"[+-]? ?\d+")


class Halving(ScriptedClient):
    """Halves each sum, and answers every question by its number of characters."""

    def __init__(self) -> None:
        super().__init__(_halved)

    async def close(self) -> None:
        """Nothing is open."""


def _halved(request: ChatRequest) -> str:
    text = request.messages[-1][1]
    if not request.schema:
        return str(len(text))
    if "not_decomposable" not in request.schema:
        return json.dumps({"step": {"answer": str(len(text))}})
    terms = TERM.findall(text.rpartition("Question:")[2])
    if len(terms) < 2:
        return json.dumps({"step": {"not_decomposable": "one number"}})
    middle = (len(terms) + 1) // 2
    halves = " ".join(terms[:middle]), " ".join(terms[middle:])
    parts = [{"question": f"What is {half.lstrip('+ ')}?", "needs": []} for half in halves]
    return json.dumps({"step": {"ask": parts}})


async def measure(model: str, client: ChatClient, n: int, seed: int, report: Report) -> None:
    """Calls and tokens of each depth, on the same questions."""
    natural = natural_tasks()["chain_sum"]
    task, calls = natural.task, dict[int, float]()
    questions = task.sample(n, LEVEL, "held_out", seed)
    limit = 0
    for depth in DEPTHS:
        with scratch_context(client, seed) as base:
            context = replace(
                base,
                limits=replace(base.limits, depth=depth),
                max_tokens=task.max_answer_tokens,
                system_prompt=task.system_prompt,
                overseers=(ModelOverseer(max_tokens=TOKENS),),
                weighing=Weighing(),
            )
            result = await done(f"depth {depth}", natural, Amplified(context), questions)
        calls[depth], limit = result.calls, context.limits.calls
        report.rows.append(
            {
                "model": model,
                "depth": depth,
                "n": n,
                "calls": round(result.calls, 1),
                "tokens": round(result.tokens),
                "undivided": round(result.undivided, 2),
                "right": sum(result.right.values()),
                "seconds": round(result.seconds, 1),
            }
        )
        print(report.rows[-1], flush=True)
    report.claims += [
        Claim(f"{model}: calls a question, of {limit}", max(calls.values()), "<=", limit, n),
        Claim(f"{model}: calls of depth 3, of depth 1", calls[3] / calls[1], "<=", 4.0, n),
    ]


def main(model: str, n: int, *, quick: bool, seed: int = 0) -> None:
    """Run and report."""
    report = Report("depth", seed=seed, quick=quick)

    async def run() -> None:
        await measure(SCRIPTED, Halving(), n, seed, report)
        if not quick and model != SCRIPTED:
            client = open_model(model, context=2048)
            try:
                await measure(model.rpartition("/")[2], client, n, seed, report)
            finally:
                await client.close()

    asyncio.run(run())
    report.finish()


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("-n", type=int, default=10)
    given = parser.parse_args()
    main(given.model, 2 if given.quick else given.n, quick=given.quick)
