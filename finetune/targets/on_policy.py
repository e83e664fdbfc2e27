"""On-policy distillation: the student samples, and the teacher grades what it said.

On recorded texts a student never sees its own mistakes (Agarwal et al. 2024, arXiv 2306.13649).
Its samples are known to collapse, to nothing or to endless repetition: so their length and
repetition are watched, and when they collapse the rest is learned from the recorded texts.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from transformers import GenerationConfig

from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.data.encoding import IGNORED
from reflux.finetune.targets.dataset import Feature, SoftCollator

WATCHED = 20
"""Batches of samples over which a collapse is judged."""
SHORT, CUT, REPEATED = 0.25, 0.5, 0.5
"""A collapse: samples shorter than this share of the texts, more than this share of them without
an end, or more than this share of their token triples said before, beyond that of the texts."""


@dataclass
class Sampler:
    """Replaces the texts of a batch by the student's own samples."""

    targets: TargetConfig
    collate: SoftCollator
    ends: Sequence[int]
    """Tokens that end a reply."""
    max_tokens: int
    text_tokens: float
    """Mean length of the recorded texts."""
    text_repeated: float
    """Mean `repetition` of them."""
    on_note: Callable[[str], None] = lambda note: None
    sampling: bool = False
    """Whether the batch that is trained is of samples."""
    samples: int = 0
    collapsed: str = ""
    """How the samples collapsed, and at which step; empty while they do not."""
    _watched: deque[tuple[float, float, float]] = field(
        default_factory=lambda: deque[tuple[float, float, float]](maxlen=WATCHED)
    )

    def is_due(self, state: Any) -> bool:
        """Whether the student samples at a step of the training."""
        if len(self._watched) == WATCHED and not self.collapsed:
            self._judge(state.global_step)
        begin = self.targets.cold_start * state.max_steps
        self.sampling = not self.collapsed and state.global_step >= begin
        return self.sampling

    def _judge(self, step: int) -> None:
        length, cut, repeated = (fmean(column) for column in zip(*self._watched, strict=True))
        if length < SHORT * self.text_tokens:
            self.collapsed = f"short: {length:.1f} tokens, the texts {self.text_tokens:.1f}"
        elif cut > CUT:
            self.collapsed = f"endless: {cut:.0%} reach {self.max_tokens} tokens without an end"
        elif repeated > self.text_repeated + REPEATED:
            self.collapsed = f"repetitive: {repeated:.0%} of three tokens in a row are said again"
        if self.collapsed:
            self.collapsed += f" (step {step})"
            self.on_note(
                f"the student's samples became {self.collapsed}: the rest is learned from the "
                "recorded texts; raise targets.cold_start, or lower sft.learning_rate"
            )

    def sampled(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A collated batch with samples in the place of the graded rows' texts; rows that no
        teacher grades stay as they are."""
        plain, soft = batch, batch["soft"]
        graded = soft["graded"].any(1).tolist()
        prompts = [_prompt(plain, row) for row, is_graded in enumerate(graded) if is_graded]
        if not prompts:
            return dict(batch)
        replies = self._generate(model, prompts)
        self._watch(replies)
        features: list[Feature] = []
        taught = 0
        for row, is_graded in enumerate(graded):
            weight = float(soft["weights"][row, 0])
            if not is_graded:
                whole = int(plain["attention_mask"][row].sum())
                ids, labels = (plain[key][row, :whole].tolist() for key in ("input_ids", "labels"))
                features.append(_feature(ids, labels, weight))
                continue
            reply, asked = replies[taught], _prompt(soft["teacher"], taught)
            known = prompts[taught]
            features.append(
                _feature([*known, *reply], [*[IGNORED] * len(known), *reply], weight)
                | {
                    "graded": [*[0] * len(known), *[1] * len(reply)],
                    "teacher_ids": [*asked, *reply],
                    "teacher_labels": [*[IGNORED] * len(asked), *reply],
                }
            )
            taught += 1
        return self.collate(features)

    def _generate(self, model: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
        """A sample for each prompt, with the token that ends it."""
        width = max(map(len, prompts))
        padding = self.collate.padding
        ids = torch.tensor([[padding] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        model.eval()
        try:
            with torch.no_grad():
                drawn = model.generate(
                    input_ids=ids,
                    attention_mask=mask.to(model.device),
                    generation_config=GenerationConfig(
                        do_sample=True,
                        top_k=0,
                        max_new_tokens=self.max_tokens,
                        eos_token_id=list(self.ends),
                        pad_token_id=padding,
                    ),
                )
        finally:
            model.train()
        return [self._ended(row) for row in drawn[:, width:].tolist()]

    def _ended(self, row: list[int]) -> list[int]:
        end = next((i for i, token in enumerate(row) if token in self.ends), len(row) - 1)
        return row[: end + 1]

    def _watch(self, replies: Sequence[list[int]]) -> None:
        self.samples += len(replies)
        self._watched.append(
            (
                fmean(map(len, replies)),
                fmean(reply[-1] not in self.ends for reply in replies),
                fmean(map(repetition, replies)),
            )
        )

    def report(self) -> dict[str, Any]:
        """What became of the samples; means are those of the last batches."""
        means = [fmean(column) for column in zip(*self._watched, strict=True)] or [None] * 3
        keys = ("tokens", "without_end", "repeated")
        return {
            "samples": self.samples,
            **dict(zip(keys, means, strict=True)),
            "text_tokens": self.text_tokens,
            "text_repeated": self.text_repeated,
            "collapsed": self.collapsed,
        }


def repetition(tokens: Sequence[int]) -> float:
    """The share of a text's token triples that it has said before, 0 to 1."""
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def sampler_for(
    targets: TargetConfig,
    collate: SoftCollator,
    features: Sequence[Mapping[str, Any]],
    ends: Sequence[int],
    context: int | None,
    on_note: Callable[[str], None],
) -> Sampler:
    """The sampler of a training on these features, with its measures of the recorded texts."""
    texts = [
        [label for label in feature["labels"] if label != IGNORED]
        for feature in features
        if any(feature["graded"])
    ]
    lengths = [len(text) for text in texts]
    limit = targets.max_tokens or 2 * max(lengths)
    if context is not None:
        longest = max(max(len(f["input_ids"]), len(f["teacher_ids"])) for f in features)
        limit = max(1, min(limit, context - longest))
    repeated = fmean(map(repetition, texts))
    return Sampler(targets, collate, ends, limit, fmean(lengths), repeated, on_note)


def _prompt(batch: Mapping[str, Any], row: int) -> list[int]:
    """The tokens of a row before the first that counts."""
    begin = int((batch["labels"][row] != IGNORED).nonzero()[0, 0])
    return batch["input_ids"][row, :begin].tolist()


def _feature(ids: list[int], labels: list[int], weight: float) -> Feature:
    return {
        "input_ids": ids,
        "labels": labels,
        "graded": [0] * len(ids),
        "weight": weight,
        "teacher_ids": [],
        "teacher_labels": [],
        "top_ids": [],
        "top_logprobs": [],
    }
