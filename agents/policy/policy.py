"""What untrusted text may reach, as a value that a run is configured with.

Every text carries labels that say where it comes from: the blocks of data in a question, the
replies of tools, the answers of copies that read either. A value of a strict type carries them as
`value:` labels. A label follows what is made of a text through the tree; the policy is asked before
a labelled text reaches a tool's argument, another question, or the answer.

Covered: flows through questions, answers, tool calls and the steps of an overseer that is a model.
Not covered: what a script branches on, since code is its author's; what a model knows by training;
wrong values of the right type; what a tool does with an argument that it is allowed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

from reflux.agents.errors import UsageError, check_choice, check_range
from reflux.agents.policy.typed import NAMES, TYPED
from reflux.agents.tools.calculator import Calculator
from reflux.agents.tools.documents import Documents
from reflux.agents.tools.protocol import Tool
from reflux.agents.tools.python_sandbox import Sandbox

VALUE = "value:"
"""Begins the label of a value that cannot instruct anybody."""
EVERY = "*"
DETERMINED = (Calculator, Sandbox)
"""Tools whose replies follow from their arguments."""
HARMLESS = (*DETERMINED, Documents)
"""Tools that change nothing. By class: another tool may have any name."""
View = Literal["hidden", "delimited"]
Carried = Literal["text", "values"]


def texts(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels of text, sorted: those of values are left out."""
    return tuple(sorted({label for label in labels if not label.startswith(VALUE)}))


def values(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels of values, sorted."""
    return tuple(sorted({label for label in labels if label.startswith(VALUE)}))


def as_values(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels of a value that was read from such a text."""
    return tuple(sorted({VALUE + label.removeprefix(VALUE) for label in labels}))


def joined(*labels: Iterable[str]) -> tuple[str, ...]:
    """The labels of what is made of several texts."""
    return tuple(sorted(set[str]().union(*labels)))


@dataclass(frozen=True)
class Policy:
    """What untrusted text may reach. A question without any is asked as without a policy, to the
    byte."""

    overseer: View = "delimited"
    """How an overseer sees untrusted text: between delimiters, or as a handle, which it passes on
    unread. A model that has seen it unhidden may ask no tool but `text_tools` on that question."""
    text_tools: tuple[str, ...] = ()
    """Tools whose arguments may hold untrusted text, beside Reflux's own, which change nothing; `*`
    for all."""
    value_tools: tuple[str, ...] = (EVERY,)
    """Tools whose arguments may hold values read from untrusted text; `*` for all."""
    trusted_tools: tuple[str, ...] = ()
    """Tools whose replies say only what their arguments determine, beside Reflux's calculator and
    Python sandbox; those of all others are untrusted."""
    questions: Carried = "text"
    """What sub-questions may hold: untrusted text between delimiters, or values alone, so that only
    a quarantined copy reads it, which answers in a type."""
    answers: Carried = "text"
    """What the answer to the root question may be made of."""
    question_chars: int = 20_000
    """Maximum characters of a sub-question with its data."""
    types: tuple[str, ...] = ()
    """Types that a model as overseer is told of, so that it has untrusted text read as a value."""

    def __post_init__(self) -> None:
        check_choice("policy.overseer", self.overseer, get_args(View))
        for name in ("questions", "answers"):
            check_choice(f"policy.{name}", getattr(self, name), get_args(Carried))
        chars: Any = self.question_chars
        if not isinstance(chars, int):
            raise UsageError(f"policy.question_chars is {chars!r}; write a whole number")
        check_range("policy.question_chars", chars, least=1)
        for name in ("text_tools", "value_tools", "trusted_tools", "types"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        for name in self.types:
            check_choice("a type of policy.types", name, [k for k in NAMES if k != "choice"])

    @classmethod
    def of(cls, named: Any) -> "Policy | None":
        """A policy by its name, or by its fields, which may build on a `preset`; None for none.

        Raises:
            UsageError: there is no such policy or field, or a value is out of its range.
        """
        if named is None or isinstance(named, Policy):
            return named
        if isinstance(named, str):
            check_choice("a policy", named, list(PRESETS))
            return PRESETS[named]
        if not isinstance(named, Mapping):
            raise UsageError(
                f"a policy is {named!r:.80}; write {', '.join(PRESETS)}, or its fields by name"
            )
        values = dict(named)
        preset = cls.of(cast(str, values.pop("preset", "standard")))
        known = [field.name for field in fields(cls)]
        if unknown := [str(name) for name in values if name not in known]:
            raise UsageError(
                f"a policy has no {', '.join(unknown)}; it has preset, {', '.join(known)}"
            )
        return cls(**{**(asdict(preset) if preset else {}), **values})

    def to_json(self) -> dict[str, Any]:
        """The fields in plain JSON types, which `of` reads."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def tool_problem(self, labels: Iterable[str], name: str, tool: Tool) -> str | None:
        """Why what carries these labels must not reach a tool's argument; None where it may."""
        labels = tuple(labels)
        text = texts(labels)
        if text and not (isinstance(tool, HARMLESS) or _among(name, self.text_tools)):
            return (
                f"the policy lets no text of {', '.join(text)} reach the tool {name}: pass a value "
                f"of a type on, or name the tool in policy.text_tools"
            )
        if labels and not (text or _among(name, self.value_tools)):
            return (
                f"the policy lets no value of {', '.join(labels)} reach the tool {name}: name it "
                "in policy.value_tools"
            )
        return None

    def question_problem(self, labels: Iterable[str], chars: int, to: str = "") -> str | None:
        """Why a sub-question of so many characters must not go `to` this one; None where it may."""
        text = texts(labels)
        if text and self.questions == "values" and not to.startswith(TYPED):
            return (
                f"the policy lets no text of {', '.join(text)} reach a sub-question but one to a "
                "type, such as typed:number"
            )
        if chars > self.question_chars:
            return (
                f"the sub-question has {chars} characters; policy.question_chars is "
                f"{self.question_chars}"
            )
        return None

    def answer_problem(self, labels: Iterable[str]) -> str | None:
        """Why the root question must not be answered by this; None where it may."""
        text = texts(labels)
        if text and self.answers == "values":
            return f"the policy lets no text of {', '.join(text)} reach the answer"
        return None

    def offered(self, labels: Iterable[str], tools: Sequence[Tool]) -> list[Tool]:
        """The tools that a model may still call which has read what carries these labels."""
        labels = tuple(labels)
        return [tool for tool in tools if self.tool_problem(labels, tool.spec.name, tool) is None]

    def labels_of_reply(self, name: str, tool: Tool) -> tuple[str, ...]:
        """The labels of a tool's reply, beside those of its arguments."""
        is_trusted = isinstance(tool, DETERMINED) or _among(name, self.trusted_tools)
        return () if is_trusted else (f"tool:{name}",)


def _names(field: str, value: Any) -> tuple[str, ...]:
    """A list of names in a configuration; one is a list of one."""
    listed: Any = (value,) if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(e, str) for e in listed):
        raise UsageError(f"policy.{field} is {value!r:.80}; write a list of names")
    return tuple(listed)


def _among(name: str, names: Sequence[str]) -> bool:
    return EVERY in names or name in names


TYPES = ("integer", "number", "boolean", "date", "line")
PRESETS: Mapping[str, Policy] = {
    "standard": Policy(),
    "strict": Policy(overseer="hidden", types=TYPES),
    "sealed": Policy("hidden", questions="values", answers="values", types=TYPES[:-1]),
}
"""`standard` delimits what is untrusted, and follows it; `strict` also hides it from overseers;
`sealed` also has it read by quarantined copies alone, so that only values leave it."""
