"""Last letters of four words in one call, of words that no training row holds, and without a label
for any question of four (Yu et al. 2024, arXiv 2407.06023, section 4.1: 98.0% in one call).

`last letters: GRAPE PLUM LEMON KIWI` asks for `E M N I`. H says the last letter of some thousand
single words, and round 0 imitates it. Round 1 divides questions of four into words, most of which
H never labelled: copies of the student answer them by votes, H joins the letters, and the next
student learns question and joined answer. H knows no other word, and nothing looks whether an
answer is right; the check sees that each letter occurs in its word.

Words are written in capitals, which the tokenizer cuts into short pieces: some five hundred pieces
end 97% of all words, so that a small model meets nearly every end of a word in training.

Claims: the student, in one call, on words that are held out; the calls that it saves; no word of a
held-out question is in a row.
"""

import argparse
import asyncio
import random
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from benchmarks.report import Claim, Report
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.protocol import PASS, Overseer
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, ChatRequest, Exchange, Step
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.finetune.configs.run import BatchedConfig, RoundsConfig, RoundSpec
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages
from reflux.graphs.ask import Direct
from reflux.graphs.evals.task import Split, Task, draw_questions, hashed_out

HEAD = "last letters: "
WORDS = 4
TARGET = 0.98


def write(words: Sequence[str]) -> str:
    return HEAD + " ".join(words)


def read(question: str) -> list[str]:
    """The words of a question.

    Raises:
        ValueError: it has another form.
    """
    words = question.removeprefix(HEAD).split()
    if not question.startswith(HEAD) or not words:
        raise ValueError(f"{question!r} is not of the form {HEAD}GRAPE PLUM")
    return words


class LastLetters(Task):
    """The last letters of words; the level is their number."""

    name = "last_letters"
    writing = "words are written in capitals"
    level_unit = "words"

    def __init__(self, labelled: int = 5000) -> None:
        """
        Args:
            labelled: words whose last letter H says.
        """
        self._labelled = labelled

    @cached_property
    def _words(self) -> list[str]:
        text = files("reasoning_gym.data").joinpath("words3to10.txt").read_text(encoding="utf-8")
        found = [word.upper() for word in text.split() if word.isascii() and word.islower()]
        return random.Random(self.name).sample(found, len(found))

    @cached_property
    def _vocabulary(self) -> dict[Split, list[str]]:
        """A word is held out where its own question is, so that no question mixes the two."""
        split: dict[Split, list[str]] = {"train": [], "held_out": []}
        for word in self._words:
            is_out = hashed_out(f"{self.name}:{write([word])}")
            split["held_out" if is_out else "train"].append(word)
        return split

    @cached_property
    def _known(self) -> dict[str, None]:
        return dict.fromkeys(self._vocabulary["train"][: self._labelled])

    def primitives(self) -> Sequence[str]:
        """The words that H labels, one a question."""
        return [write([word]) for word in self._known]

    def sample(self, n: int, level: int, split: Split, seed: int) -> Sequence[str]:
        """Words of the split's own vocabulary."""
        words = self._vocabulary[split]
        return draw_questions(
            self, n, level, split, seed, lambda generator: write(generator.sample(words, level))
        )

    def overseers(self) -> Sequence[Overseer]:
        return (ScriptedOverseer(self.name, self._act),)

    def _act(self, question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        words = read(question)
        if not may_ask or (len(words) == 1 and words[0] not in self._known):
            return PASS
        if len(words) == 1:
            return Answer(words[0][-1])
        if not transcript:
            return Ask.of(*(write([word]) for word in words))
        letters = [exchange.answer for exchange in transcript]
        if None in letters:
            raise ValueError(f"no letter of {words[letters.index(None)]}")
        return Answer(" ".join(letter for letter in letters if letter))

    def checker(self) -> Checker:
        return RuleChecker({"form": has_form, "in its word": is_in_word})

    def answer_tokens(self, question: str) -> int:
        return 2 * len(read(question)) + 2

    def normalise(self, answer: str) -> str:
        return " ".join(answer.split())

    def from_user(self, text: str) -> str:
        """Reads words of any case, or the task's own form."""
        return write(text.removeprefix(HEAD).upper().split())

    def score(self, question: str, answer: str) -> bool:
        return answer.split() == [word[-1] for word in read(question)]


def has_form(question: str, answer: str) -> bool:
    """True for one capital letter a word."""
    letters = answer.split()
    return len(letters) == len(read(question)) and all(
        len(letter) == 1 and letter.isalpha() and letter.isupper() for letter in letters
    )


def is_in_word(question: str, answer: str) -> bool:
    """True where each letter occurs in its word."""
    return all(letter in word for letter, word in zip(answer.split(), read(question), strict=True))


@dataclass(frozen=True)
class Config:
    """One run."""

    labelled: int = 5000
    """Words that H labels."""
    repeats: int = 2
    """Of each of them in the rows."""
    questions: int = 3000
    """Of four words, which round 1 divides."""
    n: int = 500
    """Held-out questions."""
    learning_rate: float = 2e-3
    anchor: int = 64
    seed: int = 0
    folder: Path | None = None
    """Of the run, to go on in; a scratch folder where None."""
    quick: bool = False

    @property
    def rounds(self) -> RoundsConfig:
        """The run: round 0 imitates H, round 1 learns four words."""
        specs = (
            RoundSpec(level=1, primitive_repeats=self.repeats),
            RoundSpec(
                level=WORDS, questions=self.questions, held_out=self.n,
                primitive_repeats=1, hard=0,
            ),
        )  # fmt: skip
        sft = {"learning_rate": self.learning_rate}
        return RoundsConfig(
            task="last_letters", seed=self.seed, rounds=specs, anchor=self.anchor,
            anchor_tokens=24, sft=sft,
        )  # fmt: skip


async def climb(stages: Stages, report: Report, *, trains: bool) -> None:
    """Both rounds; without training the same model answers in both."""
    agent = "base"
    for number in (0, 1):
        made = await stages.amplify(number, agent)
        row = {"round": number, **{key: made[key] for key in ("questions", "accepted", "calls")}}
        if trains:
            trained = await stages.distill(number)
            agent = f"student-r{number}"
            if number == 0:
                stages.run.folder.registry.promote(agent)
                row |= await singles(stages, agent)
            row |= {key: trained[key] for key in ("trained_rows", "seconds", "final_loss")}
        report.rows.append(row)
        print(report.rows[-1], flush=True)


async def singles(stages: Stages, agent: str) -> dict[str, float]:
    """How well a student knows single words that are held out."""
    questions = stages.task.sample(500, 1, "held_out", stages.config.seed)
    source = stages.source(0, "student-single", "held_out")
    system = Direct(stages.context(agent))
    score = await stages.score(system, source, questions, "single words")
    return {"single words, held out": round(score.accuracy, 4)}


async def judge(stages: Stages, report: Report) -> None:
    """Base, amplified system and student on the same held-out questions."""
    await stages.run.load("student-r1")
    scores = await stages.evaluate(1, "student-r0")
    for name, score in scores.items():
        report.rows.append(
            {
                "system": name,
                "accuracy": round(score["accuracy"], 4),
                "95%": [round(end, 4) for end in score["ci95"]],
                "n": score["n"],
                "calls": round(score["calls"] / score["n"], 2),
                "tokens": round(score["tokens"] / score["n"]),
            }
        )
    student, amplified = scores["student"], scores["amplified"]
    n = student["n"]
    calls = [score["calls"] / n for score in (amplified, student)]
    report.claims += [
        Claim("student, four words, one call", student["accuracy"], ">=", TARGET, n,
              tuple(student["ci95"])),
        Claim("calls of the amplified system over the student's", calls[0] / calls[1], ">=",
              WORDS, n),
    ]  # fmt: skip


def shared(stages: Stages) -> int:
    """Words of held-out questions that stand in a training row."""
    rows, _ = stages.rows(1)
    learned = {word for row in rows if row.task == stages.task.name for word in read(row.question)}
    asked = {word for question in stages.held_out(1) for word in read(question)}
    return len(asked & learned)


def right_letters(request: ChatRequest) -> str:
    """A client without a model, which knows every last letter."""
    question = request.messages[-1][1]
    return " ".join(w[-1] for w in read(question)) if question.startswith(HEAD) else "Paris"


@asynccontextmanager
async def open_stages(config: Config) -> AsyncGenerator[Stages]:
    """The stages of a run, in a folder that lasts as long as the block or is the config's own."""
    client = ScriptedClient(right_letters) if config.quick else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(config.folder or Path(scratch))
        async with OpenRun(folder, BatchedConfig(context=512), client) as run:
            yield Stages(config.rounds, LastLetters(config.labelled), run, lambda *_: None)


def main(config: Config) -> None:
    """Run and report."""
    report = Report("last_letters", seed=config.seed, quick=config.quick)

    async def run() -> None:
        async with open_stages(config) as stages:
            await climb(stages, report, trains=not config.quick)
            if not config.quick:
                await judge(stages, report)
            n = len(stages.held_out(1)) * WORDS
            name = "words of held-out questions in a training row"
            report.claims.append(Claim(name, shared(stages), "==", 0, n))

    asyncio.run(run())
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run without a model")
    parser.add_argument("--labelled", type=int, default=Config.labelled, help="words H labels")
    parser.add_argument("--questions", type=int, default=Config.questions, help="of four words")
    parser.add_argument("--repeats", type=int, default=Config.repeats, help="of each label")
    parser.add_argument("-n", type=int, default=Config.n, help="held-out questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="of the run; one that is there goes on")
    given = vars(parser.parse_args())
    quick = Config(labelled=20, questions=4, n=4, anchor=0, quick=True)
    main(quick if given.pop("quick") else Config(**given))
