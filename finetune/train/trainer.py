"""TRL's trainer with a lean loss: the same gradients from fewer operations."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from trl.trainer.sft_trainer import SFTTrainer

from reflux.agents.errors import RefluxError
from reflux.finetune.train.fused_lora import fuse_lora
from reflux.finetune.train.packing import Packed, pack, packable, packed_attention

SCALED_LOGITS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Config keys of models that do more to their logits than one matrix product."""


class StudentTrainer(SFTTrainer):
    """TRL's SFT trainer, without the padding and with logits only where the label counts.

    The loss and its gradients are TRL's own, up to rounding. TRL's fused head walks the vocabulary
    in tiles, for every token, to save memory; completions of a few tokens need no such thrift.
    A model that `reflux.finetune.train.packing` cannot lay out in one line is trained on the padded
    batch.
    """

    step_loss: float = 0.0
    """Of the current step so far; gradient accumulation adds its parts up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        # Autocast would choose other precisions than the fused layer's.
        if not (self.args.bf16 or self.args.fp16):
            fuse_lora(model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood of the counted tokens, a scalar."""
        if return_outputs or not self._has_plain_loss(inputs):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        whole: Any = self.accelerator.unwrap_model(model)
        if isinstance(whole, PeftModel):
            whole = whole.get_base_model()
        given = {key: value for key, value in inputs.items() if key != "use_cache"}
        packed = None
        if packable(whole) and not self.args.gradient_checkpointing:
            packed = pack(given, whole.config, whole.dtype)
        # Calling the decoder goes round the wrapper that would have entered autocast.
        with self.accelerator.autocast():
            total, n = _summed_loss(whole, given) if packed is None else _packed_loss(whole, packed)
        items = n if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(items, device=total.device).clamp(min=1)

    def _has_plain_loss(self, inputs: dict[str, Any]) -> bool:
        model: Any = self.model
        args: Any = self.args
        config = model.config.get_text_config()
        return (
            args.loss_type == "nll"
            and not args.label_smoothing_factor
            and self.compute_loss_func is None
            and not self.aux_loss_enabled
            and not self.padding_free
            and self.accelerator.num_processes == 1
            and "shift_labels" not in inputs
            and all(getattr(config, key, None) is None for key in SCALED_LOGITS)
        )

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; its loss must be finite.

        Raises:
            RefluxError: it is not.
        """
        loss = super().training_step(*args, **kwargs)
        value = float(loss)
        if not math.isfinite(value):
            raise RefluxError(
                f"the loss is {value} at step {self.state.global_step + 1} with learning rate "
                f"{self._get_learning_rate():.3g} (peak {self.args.learning_rate:.3g}): lower "
                "sft.learning_rate or raise sft.warmup_steps"
            )
        self.step_loss += value
        return loss


def _summed_loss(model: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
    """Negative log-likelihood of the batch's counted tokens, summed, and how many they are."""
    labels = batch["labels"][:, 1:]  # (rows, tokens - 1)
    counted = labels != -100
    given = {key: value for key, value in batch.items() if key != "labels"}
    hidden = model.get_decoder()(**given, use_cache=False).last_hidden_state[:, :-1]
    # Contiguous rows (counted, hidden): a sliced 3-D input makes linear copy the head's weight
    # once for each row of the batch.
    logits = model.get_output_embeddings()(hidden[counted])
    loss = cross_entropy(logits.float(), labels[counted], reduction="sum")
    return loss, int(counted.sum())


def _packed_loss(model: Any, packed: Packed) -> tuple[torch.Tensor, int]:
    """The same, of a batch that is laid out in one line."""
    with packed_attention(model):
        line = model.get_decoder()(
            input_ids=packed.ids, position_ids=packed.positions, use_cache=False, packed=packed
        )
    hidden = line.last_hidden_state[0].index_select(0, packed.predicting)
    logits = model.get_output_embeddings()(hidden)
    return cross_entropy(logits.float(), packed.labels, reduction="sum"), len(packed.labels)
