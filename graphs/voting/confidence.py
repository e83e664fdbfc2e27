"""How sure an answer is, as one number, and when the agent defers to the amplified system.

The confidence of an answer, 0 to 1, is

    one copy          the probability of its least certain token
    several votes     the share of the votes that the answer has
    several experts   the share of experts that agree

and unknown where the endpoint returns no log-probabilities. It ranks answers well and is not yet a
probability of being right: a `Scaling`, fitted on held-out answers, makes it one.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reflux.agents.errors import check_range

CERTAIN = math.inf
"""Confidence of a part that adds no doubt."""
NEAREST = 1e-6
"""Confidences are taken to be at least this far from 0 and 1, where log-odds end."""


def confidence_of(detail: Mapping[str, Any], min_logprob: float | None) -> float | None:
    """The confidence of one question that was answered without the overseer.

    Args:
        detail: of the judgement that records it.
        min_logprob: of the chosen reply's least certain token, in nats.
    """
    if "disagreement" in detail:
        return 1.0 - detail["disagreement"]
    votes = detail.get("votes", 0)
    if votes == 0:
        return CERTAIN  # A tool.
    if votes > 1:
        return dict(detail.get("tally", ())).get(detail["answer"], 0) / votes
    return None if min_logprob is None else math.exp(min(0.0, min_logprob))


def log_odds(confidence: float) -> float:
    """The log-odds of a probability, in nats; finite at 0 and 1, too."""
    p = min(1 - NEAREST, max(NEAREST, confidence))
    return math.log(p / (1 - p))


@dataclass(frozen=True)
class Scaling:
    """Makes a confidence the probability of being right: its log-odds are divided by a temperature
    (Guo et al. 2017, arXiv 1706.04599) and moved by an offset (Platt 1999).

    The order of answers by their confidence stays. Without the offset no answer whose tokens are
    all more likely than not could have a probability below one half.
    """

    temperature: float = 1.0
    """Over 1 for a model that is too sure."""
    offset: float = 0.0
    """Nats of log-odds."""

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, above=0)

    def probability(self, confidence: float) -> float:
        """The probability that an answer of this confidence is right."""
        x = log_odds(confidence) / self.temperature + self.offset
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, x))))


@dataclass(frozen=True)
class Cascade:
    """The agent answers alone where it is sure enough, and is amplified where it is not."""

    threshold: float
    """Least probability of being right with which the agent's own answer stands."""
    scaling: Scaling = Scaling()
    """Of the agent; the default takes its confidence as it is."""

    def __post_init__(self) -> None:
        check_range("cascade", self.threshold, least=0, most=1)

    def to_json(self) -> dict[str, float]:
        """As the options of a question record it."""
        return {"threshold": self.threshold, **asdict(self.scaling)}

    @classmethod
    def of(cls, recorded: Mapping[str, float]) -> "Cascade | None":
        """The inverse of `to_json`; None where nothing is recorded."""
        if not recorded:
            return None
        rest = {name: value for name, value in recorded.items() if name != "threshold"}
        return cls(recorded["threshold"], Scaling(**rest))

    def probability(self, confidence: float | None) -> float | None:
        """The probability that an answer is right; None where its confidence is unknown."""
        return None if confidence is None else self.scaling.probability(min(1.0, confidence))

    def is_sure(self, confidence: float | None) -> bool:
        """Whether the agent's answer stands; of unknown confidence it does not."""
        found = self.probability(confidence)
        return found is not None and found >= self.threshold

    def judged(self, confidence: float | None) -> dict[str, Any]:
        """Whether the agent's answer stands, and why, for the record."""
        found, sure = self.probability(confidence), self.is_sure(confidence)
        if found is None:
            note = "amplified: nothing tells how sure the agent is"
        elif sure:
            note = f"the agent alone: it is sure to {found:.2f}, and {self.threshold:g} is enough"
        else:
            note = f"amplified: the agent is sure to {found:.2f}, below {self.threshold:g}"
        about = {"confidence": confidence, "probability": found, "threshold": self.threshold}
        return {"cascade": {**about, "sure": sure}, "note": note}
