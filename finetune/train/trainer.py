"""TRL's trainer with the same gradients from fewer operations.

Two parts are leaner. The loss computes logits only where the label counts. PEFT's LoRA layer
leaves a dozen operations to autograd, most of them casts between the bf16 base and the fp32
adapter, which on a CPU cost about as much as the adapter's products. The fused layer computes the
same products in the same precision, and rounds once where PEFT rounds sums to bf16 on the way.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear
from torch.nn.functional import linear
from trl.trainer.sft_trainer import SFTTrainer

from reflux.agents.errors import RefluxError
from reflux.finetune.train.packing import MODELS, Packed, pack, packable, packed_attention
from reflux.finetune.train.passes import OTHER_PASS_TOKENS, PASS_TOKENS, head_loss, passes

LEAN_MODELS = (*MODELS, "gpt2")
"""Model types whose loss and gradients a test holds against TRL's; all others are left to TRL."""
SCALED_LOGITS = (
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""Config keys of models whose logits take more than one matrix product."""
GOOD = "good-step-"
"""How the folder of the last good weights begins, beside the checkpoints."""
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
"""What torch's allocators say of a full memory."""


@contextmanager
def naming_memory(args: Any) -> Iterator[None]:
    """Say what to lower where the memory is full.

    Raises:
        RefluxError: the memory is full.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's errors of the CPU have no class.
        is_full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_full and not any(words in str(error) for words in NO_MEMORY):
            raise
        raise RefluxError(
            f"training with {args.per_device_train_batch_size} rows of up to {args.max_length} "
            f"tokens at once does not fit into memory: lower sft.per_device_train_batch_size (and "
            "raise sft.gradient_accumulation_steps) or sft.max_length, set "
            "sft.gradient_checkpointing: true, or base.quantization: nf4"
        ) from error


class StudentTrainer(SFTTrainer):
    """TRL's SFT trainer without padding, and with logits only where the label counts.

    The loss and its gradients are TRL's, up to rounding. TRL's fused head walks the vocabulary in
    tiles for every token to save memory, which completions of a few tokens do not need. A model
    that `reflux.finetune.train.packing` cannot pack is trained on the padded batch, and one that no
    test compares with TRL is trained as TRL does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        self._compared = model.config.get_text_config().model_type in LEAN_MODELS
        """Whether a test compares this architecture with TRL."""
        # Autocast chooses other precisions than the fused layer, and a sharded adapter is whole in
        # its own forward only.
        self._sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self._compared and self.accelerator.mixed_precision == "no" and not self._sharded:
            fuse_lora(model)
        self.keeps_checkpoints = False
        """Whether checkpoints outlive the training."""
        self._good: list[torch.Tensor] = []
        self._good_step = 0

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean negative log-likelihood of the counted tokens, a scalar."""
        if return_outputs or not self.lean or "shift_labels" in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        whole = self.whole(model)
        # Calling the decoder bypasses the wrapper that enters autocast.
        with self.accelerator.autocast():
            hidden, labels = self.counted_states(whole, inputs)
            total = head_loss(hidden, whole.get_output_embeddings(), labels, logit_cap(whole))
        items = len(labels) if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(items, device=total.device).clamp(min=1)

    def whole(self, model: Any) -> Any:
        """The base with its adapter, without wrappers."""
        whole: Any = self.accelerator.unwrap_model(model)
        return whole.get_base_model() if isinstance(whole, PeftModel) else whole

    def counted_states(
        self, whole: Any, inputs: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden states that predict the counted tokens, (counted, size); these tokens), row by
        row."""
        batch = {key: value for key, value in inputs.items() if key != "use_cache"}
        packed = None
        if packable(whole) and not self.args.gradient_checkpointing:
            packed = pack(batch, whole.config, whole.dtype)
        return _padded_states(whole, batch) if packed is None else _packed_states(whole, packed)

    @property
    def lean(self) -> bool:
        """Whether the loss is ours; a loss with further terms, as of balanced experts, is TRL's."""
        model: Any = self.model
        args: Any = self.args
        config = model.config.get_text_config()
        return (
            self._compared
            and args.loss_type == "nll"
            and not args.label_smoothing_factor
            and self.compute_loss_func is None
            and not self.aux_loss_enabled
            and not self.padding_free
            and self.accelerator.num_processes == 1
            and all(getattr(config, key, None) is None for key in SCALED_LOGITS)
        )

    def sampling_report(self) -> dict[str, Any] | None:
        """What became of the student's samples, where it learns from them."""
        return None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            RefluxError: the loss or a gradient is not finite. Where there are checkpoints, the
                last weights with a finite loss are kept beside them.
        """
        loss = self._step(*args, **kwargs)
        value, wrong = float(loss), ""
        if not math.isfinite(value):
            wrong = f"the loss is {value}"
        elif wrong := self._wrong_gradient():
            self._keep_good()  # Of these weights the loss is finite.
        if wrong:
            raise RefluxError(
                f"{wrong} at step {self.state.global_step + 1} with learning rate "
                f"{self._get_learning_rate():.3g} (peak {self.args.learning_rate:.3g}): lower "
                f"sft.learning_rate or raise sft.warmup_steps{self._saved_good()}"
            )
        self._keep_good()
        return loss

    def _trained(self) -> list[torch.nn.Parameter]:
        model: Any = self.model
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def _wrong_gradient(self) -> str:
        """What is wrong with the gradients of a whole step; empty where they are finite."""
        if self._sharded or self.args.fp16 or not self.accelerator.sync_gradients:
            return ""  # fp16 skips the steps that overflow.
        gradients = [p.grad for p in self._trained() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        return "" if math.isfinite(norm) else f"the gradients' norm is {norm}"

    def _keep_good(self) -> None:
        """Keep a copy of weights whose loss is finite, where checkpoints outlive the training."""
        if not self.keeps_checkpoints or self._sharded:
            return
        weights = [parameter.detach() for parameter in self._trained()]
        if not self._good:
            self._good = [weight.clone() for weight in weights]
        for kept, weight in zip(self._good, weights, strict=True):
            kept.copy_(weight)
        self._good_step = self.state.global_step

    def _saved_good(self) -> str:
        """Where the last good weights are now, as the end of a sentence; empty without any."""
        if not self._good or not self._good_step:
            return ""
        for parameter, kept in zip(self._trained(), self._good, strict=True):
            parameter.data.copy_(kept)
        folder = Path(str(self.args.output_dir)) / f"{GOOD}{self._good_step}"
        model: Any = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
        return f"; the adapter of step {self._good_step}, the last good one, is kept in {folder}"

    def _step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """In as many passes as the memory wants, where their losses add up."""
        if num_items_in_batch is None or not self.lean:
            return super().training_step(model, inputs, num_items_in_batch)
        return self._in_passes(model, passes(inputs, self._pass_tokens), num_items_in_batch)

    @property
    def _pass_tokens(self) -> int:
        return PASS_TOKENS.get(self.args.device.type, OTHER_PASS_TOKENS)

    def _in_passes(self, model: Any, parts: Iterable[dict[str, Any]], items: Any) -> torch.Tensor:
        return torch.stack([super(StudentTrainer, self).training_step(model, part, items)
                            for part in parts]).sum()  # fmt: skip


def _padded_states(model: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """As `StudentTrainer.counted_states`, of a padded batch."""
    labels = batch["labels"][:, 1:]  # (rows, tokens - 1)
    counted = labels != -100
    arguments = {key: value for key, value in batch.items() if key != "labels"}
    hidden = model.get_decoder()(**arguments, use_cache=False).last_hidden_state[:, :-1]
    # Contiguous rows (counted, hidden): for a sliced 3-D input, linear copies the head's weight
    # once for each row of the batch.
    return hidden[counted], labels[counted]


def _packed_states(model: Any, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """As `StudentTrainer.counted_states`, of a packed batch."""
    with packed_attention(model):
        out = model.get_decoder()(
            input_ids=packed.ids, position_ids=packed.positions, use_cache=False, packed=packed
        )
    return out.last_hidden_state[0].index_select(0, packed.predicting), packed.labels


def logit_cap(model: Any) -> float | None:
    """What the logits are at most, softly (Gemma 2, arXiv 2408.00118, section 2)."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


class _LoraLinear(torch.autograd.Function):
    """x W' + b + s (x A') B', for x (..., inputs) of the base's type."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows.to(a.dtype) @ a.t()  # (tokens, rank)
        out = linear(rows, weight, bias).to(a.dtype).addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling = scaling
        return out.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        rows, low, weight, a, b = ctx.saved_tensors
        of_out = gradients[0].reshape(-1, gradients[0].shape[-1])
        exact = of_out.to(a.dtype)
        of_low = (exact @ b).mul_(ctx.scaling)
        of_a = of_low.t() @ rows.to(a.dtype)
        # Transposed afterwards: oneDNN is slower when the narrow dimension is the last.
        of_b = (low.t() @ exact).mul_(ctx.scaling).t()
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_out @ weight).to(a.dtype).addmm_(of_low, a).to(rows.dtype)
            of_x = of_x.view(*gradients[0].shape[:-1], -1)
        return of_x, None, None, of_a, of_b, None


def fuse_lora(model: torch.nn.Module) -> int:
    """Give every plain LoRA layer of `model` the fused forward; returns the number of layers.

    A layer with dropout, several adapters, a variant such as DoRA, a bias, or a quantized base
    keeps PEFT's forward.
    """
    layers = [layer for layer in model.modules() if _is_plain(layer)]
    for layer in layers:
        layer.forward = _forward_of(layer)  # type: ignore[method-assign]
    return len(layers)


def _is_plain(layer: torch.nn.Module) -> bool:
    return (
        type(layer) is Linear
        and type(layer.base_layer) is torch.nn.Linear
        and not layer.base_layer.weight.requires_grad
        and layer.active_adapters == ["default"] == list(layer.lora_A)
        and not layer.lora_variant
        and not layer.merged
        and isinstance(layer.lora_dropout["default"], torch.nn.Identity)
        and layer.lora_B["default"].bias is None
    )


def _forward_of(layer: Any) -> Any:
    base, scaling = layer.base_layer, layer.scaling["default"]
    a, b = layer.lora_A["default"], layer.lora_B["default"]

    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.disable_adapters or layer.active_adapters != ["default"]:  # A teacher's pass.
            return type(layer).forward(layer, x)
        return _LoraLinear.apply(x, base.weight, base.bias, a.weight, b.weight, scaling)

    return forward
