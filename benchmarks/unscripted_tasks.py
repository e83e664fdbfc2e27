"""Two shipped tasks without their scripts: a model divides their questions."""

from collections.abc import Mapping, Sequence

from reflux.agents.overseers.model import ModelOverseer
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.tools.calculator import Calculator
from reflux.agents.tools.protocol import Tool
from reflux.tasks.arithmetic import ChainSum
from reflux.tasks.multihop import Multihop


class Sums(ChainSum):
    """Sums and differences of three numbers; the overseer may ask a calculator."""

    def overseers(self) -> Sequence[Overseer]:
        return (ModelOverseer(),)

    def tools(self) -> Mapping[str, Tool]:
        return {"calculator": Calculator()}


class Cities(Multihop):
    """Which of three cities is the capital of a country on a continent."""

    parameters = ({"cities": 3},)

    def overseers(self) -> Sequence[Overseer]:
        return (ModelOverseer(),)

    def tools(self) -> Mapping[str, Tool]:
        return {}
