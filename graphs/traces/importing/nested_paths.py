"""Paths of nested graphs and agents of any program, in the form of those of Reflux's trees."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Paths:
    """The paths of one trajectory: `/0.STEP.INDEX` for each level, the root's is empty."""

    steps: dict[tuple[str, ...], int] = field(default_factory=dict[tuple[str, ...], int])
    """Step of its own graph in which a node ran, by its namespace."""
    _paths: dict[tuple[str, ...], str] = field(default_factory=lambda: {(): ""})
    _numbers: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])

    def of(self, namespace: tuple[str, ...]) -> str:
        """The path of the graph that runs within these nodes, the outermost first."""
        if namespace not in self._paths:
            above = self.of(namespace[:-1])
            step = self.steps.get(namespace, 0)
            index = self._numbers[above, step]
            self._numbers[above, step] += 1
            self._paths[namespace] = f"{above}/0.{step}.{index}"
        return self._paths[namespace]
