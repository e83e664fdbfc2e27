"""Groups the rows of a batch by length, so that laying them side by side takes little padding.

The rows that make up an optimiser step stay the same, so unlike sorting the data set by length it
leaves what is learned alone: only the padding goes.

Lays a batch out as one line of tokens: no padding, and what all rows begin with only once.

A causal model's tokens do not depend on what follows them. So the tokens that all rows begin with
(a chat template's opening, a system prompt) are the same in each, and one copy serves them all; its
gradient is the sum over the rows. And what follows the last token that has to be predicted is left
out. Everything but attention works on tokens one by one and sees one line (1, tokens); attention
takes the rows apart again, in groups of like length. Loss and gradients stay those of the padded
batch, up to rounding.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import softmax
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PASS_TOKENS = 64
"""What one more group costs, in tokens."""


def groups_of_like_length(
    lengths: Sequence[int], pass_tokens: int = PASS_TOKENS
) -> list[list[int]]:
    """The split of rows into groups that costs least; each group is a list of row numbers.

    A group of n rows costs n times its longest row plus `pass_tokens`, in tokens. The cheapest
    split keeps the order of the lengths, so it is found by dynamic programming over the sorted
    rows, in O(len(lengths)²).
    """
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    best: list[tuple[int, int]] = [(0, 0)]
    """By number of rows: the least cost, and where the last group begins."""
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
MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers do nothing across tokens but plain causal attention."""
IGNORED = -100
"""The label of a token that does not count."""


@dataclass(frozen=True)
class Group:
    """Rows of like length, for attention."""

    queries: torch.Tensor
    """(rows, own tokens): where in the line each row's own tokens are."""
    keys: torch.Tensor
    """(rows, shared and own tokens): what they may look at."""
    mask: torch.Tensor
    """(rows * key heads, queries a key head * own tokens, shared and own tokens), added."""


@dataclass(frozen=True)
class Packed:
    """A batch in one line."""

    ids: torch.Tensor
    """(1, tokens)."""
    positions: torch.Tensor
    """(1, tokens): each token's place in its row."""
    groups: list[Group]
    order: torch.Tensor
    """(tokens): where in the groups' tokens, one after the other, each token of the line is."""
    predicting: torch.Tensor
    """(counted): the tokens of the line that predict one that counts."""
    labels: torch.Tensor
    """(counted)."""


def packable(model: Any) -> bool:
    """True where a packed pass computes what a padded one does."""
    config = model.config
    return (
        config.model_type in MODELS
        and getattr(config, "sliding_window", None) is None
        and not getattr(config, "attention_dropout", 0)
        # Dropout would fall on the shared tokens once, not once a row.
        and all(module.p == 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
    )


def pack(batch: Mapping[str, torch.Tensor], config: Any, dtype: torch.dtype) -> Packed | None:
    """The batch in one line; None where it is not `input_ids`, `labels` and an `attention_mask`
    with padding at the right, or no token counts."""
    if batch.keys() != {"input_ids", "labels", "attention_mask"}:
        return None
    mask = batch["attention_mask"]
    if not bool((mask[:, :-1] >= mask[:, 1:]).all()):
        return None
    rows: list[list[int]] = []
    labels: list[list[int]] = []
    firsts: list[int] = []
    for ids, wanted in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        counted = [at for at in range(1, len(wanted)) if wanted[at] != IGNORED]
        if counted:
            rows.append(ids[: counted[-1]])
            labels.append(wanted[1 : counted[-1] + 1])
            firsts.append(counted[0] - 1)
    if not rows:
        return None
    shared = _shared(rows, min(firsts)) if len(rows) > 1 else 0
    return _lay_out(rows, labels, shared, config, dtype, batch["input_ids"].device)


def _shared(rows: Sequence[Sequence[int]], limit: int) -> int:
    """How many tokens all rows begin with, of which none predicts a token that counts."""
    columns = itertools.islice(zip(*rows, strict=False), limit)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _lay_out(
    rows: list[list[int]],
    labels: list[list[int]],
    shared: int,
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
) -> Packed:
    # The shared tokens are a row of their own, which looks at itself only.
    own = [rows[0][:shared], *(row[shared:] for row in rows)] if shared else rows
    seen = [0, *[shared] * len(rows)] if shared else [0] * len(rows)
    starts = [0, *itertools.accumulate(map(len, own))]
    lines = [range(start, start + len(row)) for row, start in zip(own, starts, strict=False)]
    positions = [at + ahead for row, ahead in zip(own, seen, strict=True) for at in range(len(row))]
    wanted = [IGNORED] * shared + [label for row in labels for label in row[shared:]]
    predicting = [at for at, label in enumerate(wanted) if label != IGNORED]
    groups: list[Group] = []
    order = [0] * starts[-1]
    done = 0
    for members in groups_of_like_length([len(row) for row in own]):
        longest = max(len(own[at]) for at in members)
        for at in members:
            order[lines[at].start : lines[at].stop] = range(done, done + len(own[at]))
            done += longest
        padded = [[*lines[at], *[lines[at][-1]] * (longest - len(own[at]))] for at in members]
        visible = [_visible(seen[at], shared, len(own[at]), longest) for at in members]
        groups.append(
            Group(
                torch.tensor(padded, device=device),
                torch.tensor([[*range(shared), *line] for line in padded], device=device),
                _mask(torch.stack(visible), config, dtype).to(device),
            )
        )
    return Packed(
        ids=torch.tensor([[token for row in own for token in row]], device=device),
        positions=torch.tensor([positions], device=device),
        groups=groups,
        order=torch.tensor(order, device=device),
        predicting=torch.tensor(predicting, device=device),
        labels=torch.tensor([wanted[at] for at in predicting], device=device),
    )


def _visible(seen: int, shared: int, length: int, longest: int) -> torch.Tensor:
    """(longest, shared + longest): which keys a row's tokens may look at: the first `seen` shared
    ones, and its own up to themselves."""
    visible = torch.zeros(longest, shared + longest, dtype=torch.bool)
    visible[:, :seen] = True
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
    """Inside, the model's attention takes rows out of a line that is given as `packed`."""
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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a line: query (1, heads, tokens, size) gives (1, tokens, heads, size)."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    found = torch.cat([_attend(q, k, v, group, scaling) for group in packed.groups])
    return found.index_select(0, packed.order)[None], None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: Group, scaling: float
) -> torch.Tensor:
    """Of a line's (tokens, heads, size), one group's rows: (rows * own tokens, heads, size)."""
    rows, own = group.queries.shape
    key_heads, size = key.shape[1:]

    def by_head(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        # The query heads that share a key head become more queries of it.
        picked = x.index_select(0, index.flatten()).view(*index.shape, key_heads, -1, size)
        return picked.permute(0, 2, 3, 1, 4).reshape(rows * key_heads, -1, size)

    keys = by_head(key, group.keys)
    scores = torch.baddbmm(
        group.mask, by_head(query, group.queries), keys.transpose(1, 2), alpha=scaling
    )
    weights = softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    found = torch.bmm(weights, by_head(value, group.keys))
    apart = found.view(rows, key_heads, -1, own, size).permute(0, 3, 1, 2, 4)
    return apart.reshape(rows * own, -1, size)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
