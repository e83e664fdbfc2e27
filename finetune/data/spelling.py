"""Tokens that a base has never trained, spelled in tokens that it has.

A vocabulary holds tokens that no text of the base's training used. Their rows of the output matrix
are all alike, so no adapter can have the model choose one of them: Qwen2.5-Coder's `<tool_call>` is
one, and a student taught to call tools with it calls none. In what a student learns to say such a
token is spelled in ordinary ones, which read the same to whoever parses the reply. Prompts keep the
token, since a request has it.

Tokens that end a reply are left as they are: spelled, they would end nothing.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

Spelled = Mapping[int, tuple[int, ...]]
"""By token: the tokens that spell it."""
OUTPUT = ("lm_head.weight", "embed_out.weight")
INPUT = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
"""Ends of the names of weights, the output matrix where it is not that of the input."""
ALIKE = 0.9995
"""Cosine from which on two rows are one."""
PADDING = 8
"""Rows behind the vocabulary, which no text can use, to compare with."""
_ATTRIBUTE = "reflux_spelled"


def spell(tokenizer: Any, folder: Path) -> None:
    """Have `encode` spell the tokens that the base of a folder has never trained."""
    setattr(tokenizer, _ATTRIBUTE, _spelled(tokenizer, folder))


def spelled_by(tokenizer: Any) -> Spelled:
    """The tokens that `encode` spells; none where `spell` has not looked."""
    return getattr(tokenizer, _ATTRIBUTE, {})


def _spelled(tokenizer: Any, folder: Path) -> Spelled:
    added = {
        id: str(token.content)
        for id, token in tokenizer.added_tokens_decoder.items()
        if not token.special
    }
    if not added:
        return {}
    rows = _rows(folder, [*tokenizer.added_tokens_decoder], len(tokenizer))
    found = {id: _pieces(tokenizer, added[id]) for id in untrained(rows) if id in added}
    return {id: pieces for id, pieces in found.items() if pieces}


def untrained(rows: Mapping[int, torch.Tensor]) -> list[int]:
    """The ids whose rows, each (hidden,), are those of another id."""
    ids = list(rows)
    if not ids:
        return []
    unit = torch.nn.functional.normalize(torch.stack([rows[id].float() for id in ids]), dim=1)
    alike = unit @ unit.t() > ALIKE
    return [id for id, row in zip(ids, alike, strict=True) if int(row.sum()) > 1]


def _rows(folder: Path, ids: Sequence[int], known: int) -> dict[int, torch.Tensor]:
    """The rows of the output matrix of these tokens, and of some behind the vocabulary."""
    for ends, file in product((OUTPUT, INPUT), sorted(folder.glob("*.safetensors"))):
        with safe_open(file, framework="pt") as weights:
            if name := next((each for each in weights.keys() if each.endswith(ends)), ""):  # noqa: SIM118 - no mapping
                matrix = weights.get_slice(name)
                height = matrix.get_shape()[0]
                wanted = [*ids, *range(known, min(known + PADDING, height))]
                return {id: matrix[id : id + 1][0] for id in wanted if id < height}
    return {}


def _pieces(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ordinary tokens that read as the text; none where there are no such ones."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ()
    words = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, 0)]
    pieces = tuple(token.id for word, _ in words for token in backend.model.tokenize(word))
    return pieces if tokenizer.decode(pieces) == text else ()


def respelled(ids: Sequence[int], labels: Sequence[int], spelled: Spelled) -> tuple[list[int], ...]:
    """Ids and labels, both (tokens,), with the tokens that count spelled where they have to be."""
    pairs = [
        pair
        for id, label in zip(ids, labels, strict=True)
        for pair in ([(each, each) for each in spelled[id]] if label in spelled else [(id, label)])
    ]
    return [id for id, _ in pairs], [label for _, label in pairs]
