"""A batch in one line: what all rows share once, no padding, and the padded batch's gradients."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from reflux.finetune.train import packing
from reflux.finetune.train.packing import IGNORED, Packed, pack, packable, packed_attention

pytestmark = pytest.mark.engine

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
}


def model_of(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **options})
    return transformers.AutoModelForCausalLM.from_config(config)


def batch_of(rows: list[list[int]], prompts: list[int]) -> dict[str, torch.Tensor]:
    """Rows padded at the right; the labels of each row's first tokens do not count."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for at, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
        labels[at, prompt : len(row)] = ids[at, prompt : len(row)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def packed_of(batch: dict[str, torch.Tensor], model: Any) -> Packed:
    packed = pack(batch, model.config, model.dtype)
    assert packed is not None
    return packed


def rows_strategy() -> st.SearchStrategy[tuple[list[list[int]], list[int]]]:
    tails = st.lists(st.integers(1, 40), min_size=2, max_size=30)
    return st.tuples(st.lists(st.integers(1, 40), max_size=8), st.lists(tails, min_size=1)).flatmap(
        lambda found: st.tuples(
            st.just([found[0] + tail for tail in found[1]]),
            st.tuples(*(st.integers(1, len(found[0] + tail)) for tail in found[1])).map(list),
        )
    )


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed_loss(model: Any, packed: Packed) -> torch.Tensor:
    with packed_attention(model):
        hidden = model.get_decoder()(
            input_ids=packed.ids, position_ids=packed.positions, use_cache=False, packed=packed
        ).last_hidden_state[0]
    logits = model.get_output_embeddings()(hidden[packed.predicting])
    return cross_entropy(logits, packed.labels, reduction="sum")


@pytest.mark.parametrize("block", [5, 128])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_loss_and_gradients_are_those_of_the_padded_batch(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "BLOCK", block)
    options = {"sliding_window": None} if kind == "mistral" else {}
    model = model_of(kind, **options)
    assert packable(model)
    opening = [7, 8, 9, 10]
    rows = [opening + [at, at + 1, at + 2] * (at + 1) for at in range(11, 15)]
    rows += [opening + list(range(20, 48)) * 3, [*opening, 3, 4]]
    batch = batch_of(rows, [6, 9, 20, 8, 40, 5])
    packed = packed_of(batch, model)
    assert packed.ids.shape[1] < sum(map(len, rows)) - len(opening) * 5
    assert len(packed.groups) > 1
    ours = packed_loss(model, packed)
    found = gradients(model, ours)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    theirs = cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(model, theirs).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == "eager"


@given(rows_strategy(), st.sampled_from([3, 128]))
def test_every_row_can_be_read_off_the_line(
    found: tuple[list[list[int]], list[int]], block: int
) -> None:
    rows, prompts = found
    batch = batch_of(rows, prompts)
    model_config = transformers.LlamaConfig(**SIZES)
    with patch.object(packing, "BLOCK", block):
        packed = pack(batch, model_config, torch.float32)
    wanted = [
        (row[: at + 1], row[at + 1])
        for row, prompt in zip(rows, prompts, strict=True)
        for at in range(prompt - 1, len(row) - 1)
    ]
    if packed is None:
        assert wanted == []
        return
    ids, positions = packed.ids[0].tolist(), packed.positions[0].tolist()
    seen: dict[int, list[int]] = {}
    tokens = torch.cat([group.queries.flatten() for group in packed.groups]).tolist()
    looks = [
        [key for key, add in zip(keys, added, strict=True) if add == 0]
        for group in packed.groups
        for keys, mask in zip(group.keys.tolist(), group.mask[::2].tolist(), strict=True)
        for added in mask[: group.queries.shape[1]]
    ]
    for place, at in enumerate(packed.order.tolist()):
        assert tokens[at] == place
        seen[place] = looks[at]
    told = []
    for at, label in zip(packed.predicting.tolist(), packed.labels.tolist(), strict=True):
        assert [positions[key] for key in seen[at]] == list(range(positions[at] + 1))
        told.append(([ids[key] for key in seen[at]], label))
    assert told == wanted


def test_a_single_row_shares_nothing_and_loses_only_its_end() -> None:
    packed = packed_of(batch_of([[1, 2, 3, 4, 5]], [3]), model_of("llama"))
    assert packed.ids.tolist() == [[1, 2, 3, 4]]
    assert packed.labels.tolist() == [4, 5]


def test_what_rows_share_ends_before_the_first_prediction() -> None:
    packed = packed_of(batch_of([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]], [3, 3]), model_of("llama"))
    assert packed.ids.tolist() == [[1, 2, 3, 4, 3, 4]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3]]


def test_rows_are_packed_within_a_models_window_only() -> None:
    batch = batch_of([[1, 2, 3, 4, 5], [1, 2, 3]], [2, 2])
    for window, packs in ((3, False), (4, True), (None, True)):  # The last token only is a label.
        model = model_of("mistral", sliding_window=window)
        assert packable(model)
        assert (pack(batch, model.config, model.dtype) is not None) == packs


def test_what_cannot_be_laid_out_is_none() -> None:
    config = model_of("llama").config
    batch = batch_of([[1, 2, 3], [4, 5]], [1, 1])
    assert pack({**batch, "pixels": torch.zeros(2)}, config, torch.float32) is None
    left = {key: value.flip(1) for key, value in batch.items()}
    assert pack(left, config, torch.float32) is None
    uncounted = {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}
    assert pack(uncounted, config, torch.float32) is None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"attention_dropout": 0.1}),
        ("gpt2", {"n_positions": 64, "n_head": 2}),
    ],
)
def test_a_model_that_does_more_than_plain_causal_attention_is_not_packed(
    kind: str, options: dict[str, Any]
) -> None:
    assert not packable(model_of(kind, **options))
