"""`StudentTrainer` with soft targets: a teacher's distributions, recorded ones, votes as weights.

Implements section 8.4.2 of the AI Safety Atlas: the student learns from the teacher's probabilities
as well as from the original data, by the loss that `reflux.finetune.targets.divergence` measures.
A token's loss is

    weight of its row * (a * divergence from its distribution + (1 - a) * cross-entropy)

with a = 0 where it has no distribution, as in the anchor's rows. Evaluation measures cross-entropy,
whatever is trained, so that losses of different targets compare.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from reflux.agents.errors import UsageError
from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.targets.dataset import soft_passes
from reflux.finetune.targets.divergence import logged_loss, soft_loss
from reflux.finetune.targets.on_policy import Sampler
from reflux.finetune.targets.teacher import TEACHER, teaching
from reflux.finetune.train.passes import PieceLoss, logits_of, piecewise
from reflux.finetune.train.trainer import SCALED_LOGITS, StudentTrainer, logit_cap

TILE = 2**23
"""Logits of a piece, at most: a divergence holds some ten tensors of this size."""


class SoftTrainer(StudentTrainer):
    """Trains on the features of `reflux.finetune.targets.dataset`."""

    def __init__(self, *args: Any, targets: TargetConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.targets = targets
        self.sampler: Sampler | None = None
        """Of a student that learns from its own samples."""
        self._check_head()

    def _check_head(self) -> None:
        """Check that logits are the head's product, which is all that the loss computes of them.

        Raises:
            UsageError: they are not, or the head is trained.
        """
        model: Any = self.model
        config = model.config.get_text_config()
        scaled = next((key for key in SCALED_LOGITS if getattr(config, key, None)), None)
        if scaled is not None or self.aux_loss_enabled:
            what = f"scales its logits ({scaled})" if scaled else "has a loss of its own (experts)"
            raise UsageError(
                f"the base {what}, which soft targets do not know: take targets: hard, or another "
                "base"
            )
        head = self.whole(model).get_output_embeddings()
        if type(head) is not nn.Linear or head.weight.requires_grad:
            raise UsageError(
                "soft targets need a head that is not trained: leave lm_head out of "
                "lora.modules_to_save and lora.target_modules"
            )

    def sampling_report(self) -> dict[str, Any] | None:
        return None if self.sampler is None else self.sampler.report()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        own = ["graded", "weight", "teacher_ids", "teacher_labels", "top_ids", "top_logprobs"]
        self._signature_columns = [*(self._signature_columns or []), *own]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The weight of the counted tokens of all batches of a step."""
        return _weight(batch_samples).to(device) if batch_samples else None

    def _step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """In as many passes as the memory wants; first the student samples, where it is due."""
        if self.sampler is not None and self.sampler.is_due(self.state):
            inputs = self.sampler.sampled(model, inputs)
            num_items_in_batch = self.current_gradient_accumulation_steps * _weight([inputs])
        parts = soft_passes(inputs, self._pass_tokens)
        return self._in_passes(model, parts, num_items_in_batch)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | float | None = None,
    ) -> Any:
        """Mean loss of the counted tokens by their weight, a scalar."""
        plain = {key: value for key, value in inputs.items() if key not in ("soft", "use_cache")}
        if not model.training or return_outputs:
            return super().compute_loss(model, plain, return_outputs, None)
        soft, weights = inputs["soft"], _token_weights(inputs)
        counted = plain["labels"][:, 1:] != -100
        graded = soft["graded"][:, 1:][counted]
        whole = self.whole(model)
        with self.accelerator.autocast():
            theirs = self._teacher_states(model, whole, soft) if "teacher" in soft else None
            hidden, labels = self.counted_states(whole, plain)
            part_loss = self._part_loss(whole, labels, weights, graded, theirs, soft)
            total = piecewise(hidden, part_loss, max(1, TILE // whole.config.vocab_size))
        items = weights.sum() if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(items, device=total.device).clamp(min=1e-6)

    def _teacher_states(self, model: Any, whole: Any, soft: Mapping[str, Any]) -> torch.Tensor:
        """Hidden states that predict the graded tokens, (graded tokens, size)."""
        peft = self.accelerator.unwrap_model(model)
        with teaching(peft, TEACHER in peft.peft_config):
            return self.counted_states(whole, soft["teacher"])[0]

    def _part_loss(
        self,
        whole: Any,
        labels: torch.Tensor,
        weights: torch.Tensor,
        graded: torch.Tensor,
        theirs: torch.Tensor | None,
        soft: Mapping[str, Any],
    ) -> PieceLoss:
        head, cap = whole.get_output_embeddings(), logit_cap(whole)
        share, targets = self.targets.soft_weight, self.targets
        sampled = self.sampler is not None and self.sampler.sampling
        beta = targets.beta if targets.beta is not None else float(sampled)
        places = graded.cumsum(0) - 1  # Of each graded token among the teacher's.

        def loss_of(hidden: torch.Tensor, part: slice) -> torch.Tensor:
            logits = logits_of(head, hidden, cap)
            is_graded = graded[part]
            mix = is_graded * share
            found = torch.zeros_like(logits[:, 0])
            if bool((mix < 1).any()):
                hard = cross_entropy(logits, labels[part], reduction="none")
                found = found + (1 - mix) * hard
            if bool(is_graded.any()):
                rows = places[part][is_graded]
                if theirs is not None:
                    with torch.no_grad():
                        other = logits_of(head, theirs[rows], cap)
                    distance = soft_loss(
                        logits[is_graded],
                        other,
                        beta=beta,
                        temperature=targets.temperature,
                        top_k=targets.top_k,
                    )
                else:
                    ids, logprobs = soft["top_ids"][rows], soft["top_logprobs"][rows]
                    distance = logged_loss(logits[is_graded], ids, logprobs, beta=beta)
                found = found.index_put((is_graded.nonzero()[:, 0],), share * distance, True)
            return (weights[part] * found).sum()

        return loss_of


def _weight(batches: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    return torch.stack([_token_weights(batch).sum() for batch in batches]).sum()


def _token_weights(batch: Mapping[str, Any]) -> torch.Tensor:
    """(counted): the weight of the row of each counted token."""
    return batch["soft"]["weights"][:, 1:][batch["labels"][:, 1:] != -100]
