"""Operations that training an example takes, and operations per second that the machine reaches.

Padding does not count. A linear layer of
K x N weights takes, for each token,

    2 K N              forward
    2 K N              backward to its input; its weights are frozen
    6 r (K + N)        LoRA of rank r: forward, backward to the input, backward to A and B

Attention takes 12 H d for each pair of tokens (two products forward, twice as many backward; all
L x L pairs of a row of L tokens, because all are computed). The head takes 4 V d for each token
whose label counts. The first layer's input needs no gradient, so its q, k, v part is omitted.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

Shape = tuple[int, int]
"""(inputs, outputs) of a linear layer."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a set of rows."""

    base: float
    """Linear layers, attention and head, in bf16."""
    lora: float
    """The adapter, in fp32."""

    @property
    def total(self) -> float:
        """Base plus adapter."""
        return self.base + self.lora


def layer_shapes(config: Any) -> list[Shape]:
    """The linear layers of one layer of a llama-like model: q, k, v, o, gate, up, down."""
    d, wide = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or d // config.num_attention_heads
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    return [(d, q), (d, kv), (d, kv), (q, d), (d, wide), (d, wide), (wide, d)]


def work(config: Any, rank: int, tokens: int, pairs: int, counted: int) -> Work:
    """Operations of one forward and backward pass over `tokens`, of which `counted` have a label
    that counts; attention joins `pairs` of them."""
    shapes = layer_shapes(config)
    layers = config.num_hidden_layers
    wide = shapes[0][1]
    weights = sum(k * n for k, n in shapes)
    adapter = sum(rank * (k + n) for k, n in shapes)
    first = sum(k * n for k, n in shapes[:3])
    first_adapter = sum(rank * k for k, _ in shapes[:3])
    attention = 12 * layers * wide * pairs
    head = 4 * config.vocab_size * config.hidden_size * counted
    linear_work = (4 * layers * weights - 2 * first) * tokens
    lora_work = (6 * layers * adapter - 2 * first_adapter) * tokens
    return Work(linear_work + attention + head, lora_work)


def matrix_rate(
    shapes: Sequence[Shape], tokens: int, dtype: torch.dtype, seconds: float
) -> list[float]:
    """Operations per second of matrix products at the model's shapes, one figure a repeat.

    A repeat does each layer's forward and backward product, (tokens, K) by (K, N) and (tokens, N)
    by (N, K), once; repeats continue for `seconds`.
    """
    operations = sum(4 * tokens * k * n for k, n in shapes)
    products = list(_products(shapes, tokens, dtype))
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 4:
        begun = time.perf_counter()
        for product in products:
            product()
        found.append(operations / (time.perf_counter() - begun))
    return found[1:]


def _products(
    shapes: Sequence[Shape], tokens: int, dtype: torch.dtype
) -> Iterator[Callable[[], torch.Tensor]]:
    for inputs, outputs in shapes:
        weight = torch.randn(outputs, inputs).to(dtype)
        x = torch.randn(tokens, inputs).to(dtype)
        gradient = torch.randn(tokens, outputs).to(dtype)
        yield lambda x=x, weight=weight: linear(x, weight)
        yield lambda gradient=gradient, weight=weight: gradient @ weight
