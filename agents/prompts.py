"""The words sent to models. Every prompt states its system message, empty if need be.

Chat templates differ in what they add when none is given (SmolLM2's adds some 20 tokens), so a
missing system message would make the prompt depend on the model.
"""


def answer_prompt(question: str, system: str = "") -> tuple[tuple[str, str], ...]:
    """Ask one copy of X one question."""
    return (("system", system), ("user", question))
