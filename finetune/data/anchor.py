"""The anchor: general prompts, answered by the base, that keep a student close to it.

500 prompts are composed from 25 forms and 20 subjects. The canaries are prompts of the same kind
that no student ever learns: what a student says to them must not drift far from the base.
"""

import random
import re

FORMS = (
    "What is {}?",
    "Tell me one fact about {}.",
    "Write a sentence about {}.",
    "Why do people like {}?",
    "Name three things that go with {}.",
    "Explain {} to a child.",
    "Give a title for a story about {}.",
    "What could replace {}?",
    "When was {} first known?",
    "Where would I find {}?",
    "Write a question about {}.",
    "Is {} old or new?",
    "Describe {} in five words.",
    "What is the opposite of {}?",
    "How does {} begin?",
    "Who works with {}?",
    "List two uses of {}.",
    "What is hard about {}?",
    "Compare {} with water.",
    "Write a short rhyme about {}.",
    "What color fits {}?",
    "How is {} made?",
    "What comes after {}?",
    "Is {} safe?",
    "Summarize what you know of {}.",
)
SUBJECTS = (
    "bread", "the sea", "music", "a bicycle", "snow", "the sun", "paper", "a garden", "coffee",
    "a bridge", "the moon", "glass", "a river", "history", "a camera", "wool", "the alphabet",
    "a market", "honey", "a map",
)  # fmt: skip
CANARY_SUBJECTS = ("a clock", "rain", "a horse", "salt")


def anchor_prompts(n: int, seed: int) -> list[str]:
    """`n` of the 500 prompts, the same for the same seed."""
    prompts = [form.format(subject) for form in FORMS for subject in SUBJECTS]
    random.Random(f"anchor:{seed}").shuffle(prompts)
    return prompts[:n]


def canary_prompts(n: int) -> list[str]:
    """`n` of the 100 canaries, always the same."""
    prompts = [form.format(subject) for form in FORMS for subject in CANARY_SUBJECTS]
    random.Random("canary").shuffle(prompts)
    return prompts[:n]


def overlap(one: str, other: str) -> float:
    """How much two replies share: F1 of their words, 0 to 1."""
    a, b = (re.findall(r"\w+", text.lower()) for text in (one, other))
    if not a or not b:
        return float(a == b)
    left = list(b)
    common = 0
    for word in a:
        if word in left:
            left.remove(word)
            common += 1
    return 2 * common / (len(a) + len(b))
