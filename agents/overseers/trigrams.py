"""How near questions are to each other by their letter trigrams: no model, the same everywhere."""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


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
