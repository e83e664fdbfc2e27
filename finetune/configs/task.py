"""What a run asks: a task, or a file of questions, with overseer, checks and tools."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from reflux.agents.overseers.step_forms import is_learned
from reflux.agents.policy.policy import Policy
from reflux.graphs.amplify.weighing import candidates_by_default
from reflux.graphs.evals.questions.files import is_hub_id
from reflux.graphs.evals.questions.forms import Keys

DEFAULT_TASK = "addition"
"""The task where neither the user nor the run names one."""
OF_QUESTIONS = ("question_key", "answer_key", "template", "score", "check")
"""Keys that mean nothing for a task."""
MAX_PATH = 1024
"""Characters; a longer template is no path."""
DOCUMENTS = "documents:"


STRICT = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
"""Of a config whose unknown keys are errors."""


class OverseerConfig(BaseModel):
    """Who decomposes questions and combines answers."""

    model_config = STRICT

    name: str = ""
    """`model`, `plain` (nobody: the agent answers whole questions) or FILE.py:NAME; empty for the
    task's own, which is `model` for a file of questions."""
    model: str = ""
    """The model of the overseer `model`; empty for the agent."""
    url: str = ""
    """Address of the endpoint that has this model, such as http://gpu:8000/v1; empty where the
    engine of the run has it, or the endpoint of the agent."""
    api_key_env: str = ""
    """The environment variable that holds the endpoint's key; OPENAI_API_KEY where empty."""
    demos: str = ""
    """Demonstrations for the overseer `model`: a file that `reflux demos make` writes, without
    held-out questions."""
    form: Literal["json", "lines", "auto"] = "json"
    """Of the replies of the overseer `model`: a JSON object or numbered lines; `auto` asks for
    lines after a reply that will not do."""
    plan: bool = False
    """Whether the overseer `model` gives all steps in one reply."""
    instructions: Literal["first", "last"] = "first"
    """Where those of the overseer `model` stand: before its examples, or after them."""

    @property
    def prompted(self) -> dict[str, Any]:
        """What is set of how the overseer `model` is prompted; it then is the overseer."""
        names = ("model", "demos", "form", "plan", "instructions")
        fields = OverseerConfig.model_fields
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value != fields[name].default}

    learn: Annotated[int, Field(ge=1)] | str = ""
    """Has a run learn an overseer: from the demonstrations of a file, or from so many training
    questions, which the original overseer divides in round 0. Its rounds divide with it."""
    improve: bool = True
    """Whether in each round the learned overseer is trained again, on the demonstrations and on its
    own trees that passed checks or agreement."""
    fallback: Literal["agent", "original"] = "agent"
    """Who gets a question that the learned overseer cannot divide by the rules: the agent, which
    answers it undivided, or the original overseer."""
    candidates: Annotated[int, Field(ge=0, le=16)] | None = None
    """Decompositions to weigh against the direct answer; 0: the overseer's answer stands. Without
    it a model has 2, if `limits.attempts` is 3 or more, and every other overseer 0."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        """A text is the name; a model alone is the overseer `model`."""
        return {"name": value} if isinstance(value, str) else value

    def weighed(self, *, of_file: bool, attempts: int, original: bool = False) -> int:
        """The candidates of a run whose task is a file of questions, or is not; of the `original`
        overseer, or of the one that is learned from it."""
        learned = is_learned(self.name) or (bool(self.learn) and not original)
        is_model = learned or self.name == "model" or self.prompted or (of_file and not self.name)
        return candidates_by_default(bool(is_model), self.candidates, attempts)

    @model_validator(mode="after")
    def _consistent(self) -> "OverseerConfig":
        if self.prompted and self.name not in ("", "model"):
            given = next(iter(self.prompted))
            raise ValueError(f"{given} is of the overseer `model`, not of {self.name!r}")
        if self.learn and is_learned(self.name):
            raise ValueError(f"{self.name!r} has learned already: leave out `learn` or the name")
        if self.fallback == "original" and not self.learn:
            raise ValueError("fallback is of an overseer that the run learns: add `learn`")
        if self.url and not self.model:
            raise ValueError("url is of a `model`: name it, too")
        return self


class TaskConfig(BaseModel):
    """What is asked and how answers are checked and scored. Relative paths are relative to the
    config's file."""

    model_config = STRICT

    task: str = DEFAULT_TASK
    """A shipped task, or FILE.py:NAME; empty where there are `questions`."""
    questions: str = ""
    """Instead of a task: a file or folder of questions, or a data set of the Hub."""
    question_key: str = ""
    """Column of the question."""
    answer_key: str = ""
    """Column of the true answer, or a.b within it; a question may lack its answer."""
    template: str = ""
    """Jinja text of a question, or a file with one: all columns by their names."""
    score: str = ""
    """How answers are compared with true ones: exact, normalised, contains, number, math, choice,
    set or FILE.py:NAME. By default choice where all questions have choices, else normalised."""
    check: tuple[str, ...] = ()
    """Tests of an answer that need no truth, one or a list: json, a JSON Schema as FILE.json, or
    FILE.py:NAME."""
    overseer: OverseerConfig = Field(default_factory=OverseerConfig)
    tools: tuple[str, ...] = ()
    """Tools of the copies, one or a list, as `--tool` takes them; an overseer asks them by
    `to="tool:NAME"`."""
    policy: Annotated[Policy | None, BeforeValidator(Policy.of)] = None
    """What untrusted text may reach: `standard`, `strict`, `sealed`, or fields of a policy, which
    build on a `preset`."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens of a reply, of the agent and the overseer; None for the task's own."""

    @property
    def task_name(self) -> str:
        """The name under which the questions are recorded and asked."""
        return self.task or Path(self.questions.partition(":")[0]).stem

    @property
    def keys(self) -> Keys:
        """The columns of the questions."""
        options = ("question_key", "answer_key", "template")
        return Keys(self.question_key, self.answer_key, self.template, True, options)

    @field_validator("check", "tools", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        """One is a list of one."""
        return [value] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _no_task(cls, values: Any) -> Any:
        """Questions take the place of the default task."""
        if isinstance(values, dict) and values.get("questions"):
            return {"task": "", **values}
        return values

    @model_validator(mode="after")
    def _one_source(self) -> "TaskConfig":
        if bool(self.task) == bool(self.questions):
            raise ValueError("name either a task or questions")
        given = [key for key in OF_QUESTIONS if getattr(self, key)]
        if given and self.task:
            raise ValueError(f"{given[0]} is for questions: a task has its own")
        return self

    def placed(self, folder: Path) -> dict[str, Any]:
        """The values of this config that name files, so that they depend on no working folder:
        relative paths start at `folder`, and a template's text stands in the place of its file."""
        template = folder / Path(self.template).expanduser()
        is_file = 0 < len(self.template) < MAX_PATH and template.is_file()
        overseer = {
            "name": _placed_code(self.overseer.name, folder),
            "demos": _placed(self.overseer.demos, folder),
            "learn": _placed_file(self.overseer.learn, folder),
        }
        return {
            "task": _placed_code(self.task, folder),
            "questions": _placed(self.questions, folder),
            "template": template.read_text(encoding="utf-8") if is_file else self.template,
            "score": _placed_code(self.score, folder),
            "check": tuple(_placed_code(check, folder) for check in self.check),
            "tools": tuple(_placed_code(tool, folder) for tool in self.tools),
            "overseer": self.overseer.model_copy(update=overseer),
        }


def _placed(path: str, folder: Path) -> str:
    """A path that is absolute; an id of the Hub stays one where there is no such file."""
    full = folder / Path(path).expanduser()
    return path if not path or (is_hub_id(path) and not full.exists()) else str(full.resolve())


def _placed_file(learn: int | str, folder: Path) -> int | str:
    return _placed(learn, folder) if isinstance(learn, str) else learn


def _placed_code(text: str, folder: Path) -> str:
    """FILE.py:NAME, FILE.json or documents:FOLDER with an absolute path; other texts unchanged."""
    where, _, name = text.rpartition(":")
    if where.endswith(".py"):
        return f"{_placed(where, folder)}:{name}"
    if text.startswith(DOCUMENTS):
        return DOCUMENTS + _placed(text.removeprefix(DOCUMENTS), folder)
    return _placed(text, folder) if text.endswith(".json") else text
