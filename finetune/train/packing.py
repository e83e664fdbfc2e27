"""Packs a batch into one sequence without padding, with the rows' shared prefix only once.

A causal model's tokens do not depend on later tokens. So the tokens that all rows begin with (a
chat template's opening, a system prompt) are computed once, and their gradient is the sum over the
rows. Tokens after the last label are left out. Everything but attention works on single tokens and
sees one sequence (1, tokens); attention separates the rows again, in groups of similar length and
blocks of tokens.

Loss and gradients are those of the padded batch, up to rounding. Unlike sorting the data set by
length, packing does not change which rows an optimizer step sees.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
from torch.nn.functional import softmax
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PASS_TOKENS = 64
"""Cost of one more group, in tokens."""
BLOCK = 128
"""Tokens of a row that attend at once. Later keys are left out, which halves the weights of long
rows."""


def groups_of_like_length(
    lengths: Sequence[int], pass_tokens: int = PASS_TOKENS
) -> list[list[int]]:
    """The cheapest split of rows into groups; each group is a list of row indices.

    A group of n rows costs n times its longest row plus `pass_tokens`, in tokens. The cheapest
    split keeps the order of the lengths, so dynamic programming over the sorted rows finds it in
    O(len(lengths)²).
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # By number of rows: minimum cost, and the start of the last group.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        best.append(
            min(
                (best[start][0] + (end - start) * longest + pass_tokens, start)
                for start in range(end)
            )
        )
    groups = []
    end = len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


ATTENTION = "reflux_packed"
MODELS = (
    "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe",
)  # fmt: skip
"""Model types whose only operation across tokens is causal attention within an optional window; a
test holds each against TRL's loss and gradients."""
IGNORED = -100
"""The label of a token without loss."""


@dataclass(frozen=True)
class Group:
    """The same block of tokens of rows of similar length, for attention."""

    queries: torch.Tensor
    """(rows, own tokens): indices of the tokens of each row's block in the sequence."""
    keys: torch.Tensor
    """(rows, keys): indices of the tokens they attend to, from each row's first to its block's
    last."""
    mask: torch.Tensor
    """(rows * key heads, queries per key head * own tokens, keys), additive."""


@dataclass(frozen=True)
class Packed:
    """A batch in one sequence."""

    ids: torch.Tensor
    """(1, tokens)."""
    positions: torch.Tensor
    """(1, tokens): each token's position in its row."""
    groups: list[Group]
    order: torch.Tensor
    """(tokens): index of each token of the sequence in the concatenated groups."""
    predicting: torch.Tensor
    """(counted): indices of the tokens that predict a label."""
    labels: torch.Tensor
    """(counted)."""


def packable(model: Any) -> bool:
    """True if a packed pass computes the same as a padded one."""
    config = model.config
    return (
        config.model_type in MODELS
        and not getattr(config, "attention_dropout", 0)
        # Dropout would apply to the shared tokens once instead of once per row.
        and all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
    )


def pack(batch: Mapping[str, torch.Tensor], config: Any, dtype: torch.dtype) -> Packed | None:
    """The batch in one sequence; None if it holds other keys than `input_ids`, `labels` and
    `attention_mask`, is padded at the left, has no labels, or has a row that is longer than a
    sliding window of the model."""
    if batch.keys() != {"input_ids", "labels", "attention_mask"}:
        return None
    mask = batch["attention_mask"]
    if not bool((mask[:, :-1] >= mask[:, 1:]).all()):
        return None
    rows: list[list[int]] = []
    labels: list[list[int]] = []
    firsts: list[int] = []
    for ids, wanted in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        counted = [index for index in range(1, len(wanted)) if wanted[index] != IGNORED]
        if counted:
            rows.append(ids[: counted[-1]])
            labels.append(wanted[1 : counted[-1] + 1])
            firsts.append(counted[0] - 1)
    window = getattr(config, "sliding_window", None)
    if not rows or (window is not None and max(map(len, rows)) > window):
        return None
    # None of the shared tokens predicts a label.
    shared = min(*firsts, len(common_prefix(rows))) if len(rows) > 1 else 0
    return _lay_out(rows, labels, shared, config, dtype, batch["input_ids"].device)


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    return list(commonprefix(rows))  # noqa: RUF071 - tokens, not paths.


def _lay_out(
    rows: list[list[int]],
    labels: list[list[int]],
    shared: int,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
) -> Packed:
    # The shared tokens become a separate row, which attends to itself only.
    own = [rows[0][:shared], *(row[shared:] for row in rows)] if shared else rows
    ahead = [0, *[shared] * len(rows)] if shared else [0] * len(rows)
    starts = [0, *itertools.accumulate(map(len, own))]
    lines = [range(start, start + len(row)) for row, start in zip(own, starts, strict=False)]
    positions = [
        index + before for row, before in zip(own, ahead, strict=True) for index in range(len(row))
    ]
    wanted = [IGNORED] * shared + [label for row in labels for label in row[shared:]]
    predicting = [index for index, label in enumerate(wanted) if label != IGNORED]
    groups: list[Group] = []
    order = [0] * starts[-1]
    done = 0
    for members in groups_of_like_length([len(row) for row in own]):
        longest = max(len(own[row]) for row in members)
        padded = [[*lines[row], *[lines[row][-1]] * (longest - len(own[row]))] for row in members]
        visible = torch.stack(
            [_visible(ahead[row], shared, len(own[row]), longest) for row in members]
        )
        for begin in range(0, longest, BLOCK):
            end = min(begin + BLOCK, longest)
            for row in members:
                block = lines[row][begin:end]
                order[block.start : block.stop] = range(done, done + len(block))
                done += end - begin
            # A block attends to nothing behind its last token.
            seen = visible[:, begin:end, : shared + end]
            groups.append(
                Group(
                    torch.tensor([line[begin:end] for line in padded], device=device),
                    torch.tensor([[*range(shared), *line[:end]] for line in padded], device=device),
                    _mask(seen, config, dtype).to(device),
                )
            )
    return Packed(
        ids=torch.tensor([[token for row in own for token in row]], device=device),
        positions=torch.tensor([positions], device=device),
        groups=groups,
        order=torch.tensor(order, device=device),
        predicting=torch.tensor(predicting, device=device),
        labels=torch.tensor([wanted[index] for index in predicting], device=device),
    )


def _visible(ahead: int, shared: int, length: int, longest: int) -> torch.Tensor:
    """(longest, shared + longest): True where a row's token attends to a key: the first `ahead`
    shared tokens, and the row's own up to itself."""
    visible = torch.zeros(longest, shared + longest, dtype=torch.bool)
    visible[:, :ahead] = True
    visible[:, shared:] = torch.ones(longest, longest, dtype=torch.bool).tril()
    visible[:, shared + length :] = False
    return visible


def _mask(visible: torch.Tensor, config: Any, dtype: torch.dtype) -> torch.Tensor:
    """`visible` (rows, own, keys) as a `Group.mask`."""
    rows, own, keys = visible.shape
    key_heads = config.num_key_value_heads
    each = config.num_attention_heads // key_heads
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    whole = mask[:, None, None].expand(rows, key_heads, each, own, keys)
    return whole.reshape(rows * key_heads, each * own, keys)


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let the model's attention separate the rows of a sequence that is passed as `packed`."""
    before = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    packed: Packed,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed sequence: query (1, heads, tokens, size), (1, tokens, heads, size)."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = torch.cat([_attend(q, k, v, group, scaling, softcap) for group in packed.groups])
    return out.index_select(0, packed.order)[None], None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: Group,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of one group: (tokens, heads, size) gives (rows * own tokens, heads, size)."""
    rows, own = group.queries.shape
    key_heads, size = key.shape[1:]

    def by_head(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        # Query heads that share a key head become further queries of it.
        picked = x.index_select(0, index.flatten()).view(*index.shape, key_heads, -1, size)
        return picked.permute(0, 2, 3, 1, 4).reshape(rows * key_heads, -1, size)

    keys = by_head(key, group.keys)
    queries = by_head(query, group.queries)
    if softcap is None:
        scores = torch.baddbmm(group.mask, queries, keys.transpose(1, 2), alpha=scaling)
    else:
        scores = torch.bmm(queries, keys.transpose(1, 2)) * (scaling / softcap)
        scores = scores.tanh() * softcap + group.mask
    weights = softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    out = torch.bmm(weights, by_head(value, group.keys))
    by_token = out.view(rows, key_heads, -1, own, size).permute(0, 3, 1, 2, 4)
    return by_token.reshape(rows * own, -1, size)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
