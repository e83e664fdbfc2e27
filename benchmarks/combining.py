"""What the reason of an answer is worth to an overseer that learns: does it combine sub-answers?

The script of `multihop` divides "Which of these cities is the capital of a country in Europe: …?"
into two facts a city, which the model answers. Two adapters learn from the same trees on training
questions: one writes the script's answer, the other its reason before it (`reflux.Answer.reason`:
"Lima: Peru, the Americas. Oslo: Norway, Europe. So …"). Both then see what the script saw in trees
on held-out questions. Chance is one in three.

Claim: with reasons, at least 0.9 of the answers are the script's.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.default_model import model_name, parser_of, scratch_run
from benchmarks.natural_tasks import natural_tasks
from benchmarks.overseer_arms import TOKENS, Scripts
from benchmarks.report import Claim, Report
from reflux.agents.types import ChatClient, ChatRequest, Sampling
from reflux.finetune.data.overseer_rows import overseer_rows
from reflux.finetune.data.rows import Row
from reflux.finetune.data.scripted_demonstrations import from_script
from reflux.finetune.engine.client import BatchedClient
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.evals.metrics import wilson

TASK = "two_facts"
LABEL = "Answer:"


@dataclass(frozen=True)
class Config:
    """One run."""

    n: int = 100
    """Held-out questions; trees without an answer are left out."""
    model: str = "default"
    """`default`, or a GGUF."""
    seed: int = 0
    quick: bool = False
    more: bool = False
    """Keeps the last run's figures of other models."""


async def same_replies(client: ChatClient, model: str, rows: Sequence[Row]) -> list[bool]:
    """Whether the model's reply to each row is the script's: of a last step, its answer."""

    async def is_same(row: Row) -> bool:
        turns = tuple((turn["role"], turn["content"]) for turn in row.prompt)
        request = ChatRequest(model, turns, Sampling(max_tokens=TOKENS))
        reply = (await client.complete(request)).text
        said, wanted = (text.rpartition(LABEL)[2].strip() for text in (reply, row.reply))
        return said == wanted

    return list(await asyncio.gather(*map(is_same, rows)))


async def measure(config: Config, client: BatchedClient, folder: RunFolder, report: Report) -> None:
    """Both adapters on the same transcripts."""
    natural, model = natural_tasks()[TASK], model_name(folder.base)
    scripts = Scripts(client, config.seed, folder)
    train = await scripts.trees(natural)
    rows = overseer_rows(await scripts.trees(natural, "held_out", config.n)).rows
    is_last = [row.reply.rpartition(LABEL)[1] == LABEL for row in rows]
    report.rows[:] = [row for row in report.rows if row["model"] != model]
    report.claims[:] = [claim for claim in report.claims if not claim.name.startswith(model)]
    for shown in ("answers alone", "reasons, too"):
        demos = train if shown == "reasons, too" else [replace(demo, reason="") for demo in train]
        overseer = await scripts.learned(demos, "combining")
        same = await same_replies(client, overseer.model, rows)
        combined = [ok for ok, last in zip(same, is_last, strict=True) if last]
        divided = [ok for ok, last in zip(same, is_last, strict=True) if not last]
        low, high = wilson(sum(combined), len(combined))
        report.rows.append(
            {
                "model": model,
                "demonstrations show": shown,
                "demonstrations": len(train),
                "combined as the script": round(sum(combined) / len(combined), 3),
                "95%": [round(low, 3), round(high, 3)],
                "n": len(combined),
                "divided as the script": round(sum(divided) / len(divided), 3),
                "n of divisions": len(divided),
            }
        )
        print(report.rows[-1], flush=True)
        if demos is train:
            share = sum(combined) / len(combined)
            name = f"{model}: answers as the script's, with reasons"
            report.claims.append(Claim(name, share, ">=", 0.9, len(combined), (low, high)))


async def checked(report: Report) -> None:
    """What a smoke run can tell without a model: that the script's demonstrations make rows."""
    natural = natural_tasks()[TASK]
    demos = (await from_script(natural.task, 4, natural.level, 0)).items
    report.rows.append({"demonstrations": len(demos), "rows": len(overseer_rows(demos).rows)})


def main(config: Config) -> None:
    """Run and report."""
    report = Report("combining", seed=config.seed, quick=config.quick, more=config.more)

    async def run() -> None:
        if config.quick:
            await checked(report)
        else:
            async with scratch_run(config.model, 2048) as (folder, client):
                await measure(config, client, folder, report)

    asyncio.run(run())
    report.finish()


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("-n", type=int, default=Config.n)
    parser.add_argument("--more", action="store_true", help="keep figures of other models")
    given = parser.parse_args()
    main(Config(n=given.n, model=given.model, quick=given.quick, more=given.more))
