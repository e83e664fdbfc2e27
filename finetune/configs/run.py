"""The config of a run. Unknown keys are errors."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from reflux.agents.clients.llama_cpp import EngineConfig
from reflux.agents.errors import UsageError
from reflux.agents.verifiers import RedFlags
from reflux.finetune.configs.base import BaseConfig
from reflux.finetune.configs.canaries import Canaries, CanaryConfig
from reflux.finetune.configs.defences import DefenceConfig
from reflux.finetune.configs.engine import AGENT, BatchedConfig, EngineSpec, engine_spec
from reflux.finetune.configs.limits import GateConfig, RetentionConfig, SpendLimitConfig
from reflux.finetune.configs.preferences import PreferenceConfig
from reflux.finetune.configs.targets import TargetConfig, Targets
from reflux.finetune.configs.task import STRICT, TaskConfig
from reflux.graphs.amplify.context import AmplifyContext, CheckPolicy, Limits
from reflux.graphs.amplify.weighing import Weighing
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.voting.voting import VotePolicy

_Config = TypeVar("_Config", bound=BaseModel)
MAX_ROUNDS = 100
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""As numpy takes it."""


class Strict(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = STRICT


class TrainingConfig(Strict):
    """How a student is trained."""

    sft: dict[str, Any] = {}
    """Goes unchanged to TRL's SFTConfig."""
    lora: dict[str, Any] = {}
    """Goes unchanged to PEFT's LoraConfig."""
    evaluation: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the prompts that are held out of training, for the loss on them (`eval_loss`): the
    weights of the least such loss become the student, not the last ones."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Evaluations without a lower loss after which training ends."""
    launch: str | dict[str, Any] | None = None
    """Trains in several processes: options of `accelerate launch`, or its config file."""
    targets: Targets = TargetConfig()
    """What is learned of each answer: a kind, or a mapping with a `kind`."""
    preferences: PreferenceConfig | None = None
    """After the rows, pairs of an accepted and a rejected answer: `{}` for the defaults."""

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if self.early_stopping is not None and not self.evaluation:
            raise ValueError(
                "early_stopping compares losses on rows held out: set evaluation: 0.05"
            )
        if self.launch is not None and self.targets.kind != "hard":
            raise ValueError(
                f"targets {self.targets.kind} are trained in one process: leave out launch, or "
                "take hard targets"
            )
        if self.launch is not None and self.preferences is not None:
            raise ValueError("preferences are trained in one process: leave out launch")
        return self


class RoundSpec(Strict):
    """One round of a run."""

    level: int = Field(default=1, ge=1, le=1000)
    """Level of the task's questions, for addition their digits; a task without levels has 1."""
    questions: int | None = Field(default=None, ge=0)
    """Training questions to amplify, none of which a round before asked; round 0 takes all
    primitives instead. None: 1000, or of a list of questions an equal share for each round."""
    held_out: int | None = Field(default=None, ge=0)
    """Questions to evaluate on; round 0 is judged on the primitives instead. None: 400, or of a
    list as many as it has."""
    hard: float = Field(default=0.1, ge=0, le=1)
    """Hard questions of the round before that are added, as a share of `questions`."""
    primitive_repeats: int = Field(default=2, ge=0)
    """Copies of each of the overseer's primitives in the training rows."""
    sft: dict[str, Any] = {}
    """Overrides of the run's `sft` for this round."""


class RoundsConfig(TaskConfig, TrainingConfig):
    """Everything that decides a run."""

    base: BaseConfig = Field(default_factory=BaseConfig)
    seed: Seed = 0
    rounds: tuple[RoundSpec, ...] = Field(min_length=1)
    """A list, or a number of rounds with default values. The first is round 0, which imitates the
    overseer, where the task has primitives, else round 1."""
    anchor: int | None = Field(default=None, ge=0, le=500)
    """General prompts whose answers by the base every student learns, so that it keeps the base's
    manners. None: as many as training questions, from 16 to 500."""
    anchor_tokens: int = Field(default=32, ge=1)
    """Maximum tokens of an answer to the anchor or a canary."""
    questions_per_level: int = Field(default=100, ge=1)
    """Held-out questions at each level on which every student is scored for the chart."""
    canaries: Canaries = CanaryConfig()
    """Prompts on which a student's behavior is compared with the base's: a number, or a mapping."""
    defences: DefenceConfig = DefenceConfig()
    """What rows lose before they are learned, against what an agent's answers carry beside them."""
    limits: Limits = Field(default_factory=Limits)
    votes: VotePolicy = Field(default_factory=VotePolicy)
    flags: RedFlags = Field(default_factory=RedFlags)
    checks: CheckPolicy = Field(default_factory=CheckPolicy)
    spend_limit: SpendLimitConfig = Field(default_factory=SpendLimitConfig)
    engine: Annotated[EngineSpec, BeforeValidator(engine_spec)] = EngineSpec()
    """Runs the models: a kind, or a mapping with a `kind`. In a batched run, llama.cpp answers
    requests with tools or schemas."""
    agent: Annotated[EngineSpec | None, BeforeValidator(engine_spec)] = None
    """The agent until a student takes its place, if not the base: `endpoint:MODEL@URL`, or a
    mapping as of `engine`. That of round 0, which has only imitated the overseer, does not."""
    roles: tuple[Literal["aggregator", "verifier"], ...] = ()
    """Parts of the amplified system for which each round trains an adapter of its own: to combine
    sub-answers (`aggregator`), to judge answers (`verifier`)."""
    keep_agent: bool = False
    """No student takes the agent's place: the same one answers in every round."""
    batched: BatchedConfig = Field(default_factory=BatchedConfig)
    llama_cpp: EngineConfig = Field(default_factory=EngineConfig)
    gates: GateConfig = Field(default_factory=GateConfig)
    retention: RetentionConfig = Field(default_factory=RetentionConfig)
    max_concurrency: int = Field(default=64, ge=1)
    """Questions amplified at once."""

    @property
    def engine_settings(self) -> EngineConfig | BatchedConfig | EngineSpec:
        """Settings of the engine, which runs the agent and all other roles by turns."""
        parts = 1 + bool(self.overseer.learn) + len(self.roles)
        batched = replace(self.batched, models=max(self.batched.models, parts))
        here = {"batched": batched, "llama.cpp": self.llama_cpp}
        return here.get(self.engine.kind, self.engine)

    @field_validator("rounds", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        """A number of rounds with default values."""
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if not 1 <= value <= MAX_ROUNDS:
            raise ValueError(f"{value} rounds are not between 1 and {MAX_ROUNDS}")
        return ({},) * value

    @model_validator(mode="after")
    def _consistent(self) -> "RoundsConfig":
        if not self.spend_limit.prices and not self.limits.money is self.spend_limit.money is None:
            raise ValueError("money is limited, and no model has a price: add spend_limit.prices")
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> "RoundsConfig":
        if self.agent is not None and self.agent.kind != "endpoint":
            raise ValueError(f"agent is {self.agent.kind}: write endpoint:MODEL@URL")
        if self.engine.kind == "endpoint" and not self.keep_agent:
            raise ValueError(
                "an endpoint loads no student, and each promoted student becomes the agent: take "
                "the engine vllm, batched or llama.cpp, or set keep_agent: true"
            )
        agent, overseer = self.agent, self.overseer
        clash = agent is not None and agent.name == overseer.model and agent.url != overseer.url
        if overseer.url and (clash or overseer.model not in self.endpoints):
            raise ValueError(
                f"overseer.model is {overseer.model!r}, which names another model of the run: have "
                "its server call it otherwise"
            )
        return self

    @property
    def first_agent(self) -> str:
        """The name of the agent before any student is."""
        return "base" if self.agent is None else self.agent.name

    @property
    def endpoints(self) -> dict[str, EngineSpec]:
        """Where those models are asked that the engine does not run, by name."""
        endpoints = {} if self.agent is None else {self.agent.name: self.agent}
        if self.overseer.url:
            fields = self.overseer.model_dump(include={"url", "model", "api_key_env"})
            spec = EngineSpec("endpoint", **fields)
            endpoints[spec.name] = spec
        for text in self.defences.models:
            if text.startswith(AGENT):
                spec = EngineSpec(**engine_spec(text))
                endpoints[spec.name] = spec
        return endpoints

    @property
    def lora_rank(self) -> int:
        """The highest rank of a student's matrices."""
        return max([self.lora.get("r", 16), *(self.lora.get("rank_pattern") or {}).values()])

    def distillation(self, spec: RoundSpec) -> "DistillConfig":
        """The settings that a round's student is trained with."""
        shared = {name: getattr(self, name) for name in DistillConfig.model_fields}
        return DistillConfig(**{**shared, "sft": {**self.sft, **spec.sft}})

    @property
    def candidates(self) -> int:
        """Decompositions that are weighed against the direct answer; 0: the overseer's stands."""
        return self.candidates_of(original=False)

    def candidates_of(self, *, original: bool) -> int:
        """As `candidates`; of the `original` overseer where another is learned from it."""
        if self.checks.confirm > 1 or self.checks.after_failure:
            return self.overseer.candidates or 0
        of_file, attempts = bool(self.questions), self.limits.attempts
        return self.overseer.weighed(of_file=of_file, attempts=attempts, original=original)

    def context(
        self, recorded_client: RecordedClient, model: str, *, original: bool = False, **more: Any
    ) -> AmplifyContext:
        """A context with the config's limits, votes and checks; `more` sets further fields.

        Args:
            original: of the overseer from which another one is learned.
        """
        shared = ("limits", "votes", "flags", "checks", "policy", "seed")
        return AmplifyContext(
            recorded_client,
            model,
            (),
            **{name: getattr(self, name) for name in shared},
            weighing=Weighing.of(self.candidates_of(original=original)),
            top_logprobs=self.targets.top_logprobs,
            **more,
        )


class DistillConfig(TrainingConfig):
    """Settings of one distillation."""

    base: BaseConfig = Field(default_factory=BaseConfig)
    seed: Seed = 0


def config_from(data: Any, source: str) -> RoundsConfig:
    """A config from parsed YAML.

    Raises:
        UsageError: unknown keys or values out of range; the message names all of them.
    """
    if isinstance(data, dict) and "format" in data:  # Run folders add it.
        data = {key: value for key, value in data.items() if key != "format"}
    return _validated(RoundsConfig, data, source)


def _validated(kind: type[_Config], data: Any, source: str) -> _Config:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{source}: {problems(error)}") from error
    except UsageError as error:  # Values check their own range.
        raise UsageError(f"{source}: {error}") from error


def problems(error: ValidationError) -> str:
    """Every wrong key and the reason, in one line."""
    lines: list[str] = []
    for problem in error.errors():
        key, message = ".".join(map(str, problem["loc"])) or "config", problem["msg"]
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = "unknown key, remove or rename it"
        elif problem["type"] == "union_tag_invalid":
            union = problem.get("ctx", {})
            known = union["expected_tags"].replace("'", "")
            message = f"kind is one of {known}, not {union['tag']!r}"
        elif problem["type"] == "union_tag_not_found":
            message = "name its kind"
        lines.append(f"{key}: {message}")
    return "; ".join(lines)


def read_config(path: Path) -> RoundsConfig:
    """A config from a YAML file, with absolute paths; relative ones start at its folder.

    Raises:
        UsageError: as `read_yaml` and `config_from`.
    """
    config, folder = config_from(read_yaml(path), str(path)), path.absolute().parent
    try:
        changed = config.placed(folder)
    except ValueError as error:
        raise UsageError(f"{path}: a path in it cannot be read ({error}): correct it") from error
    if config.base.model and (base := folder / Path(config.base.model).expanduser()).exists():
        changed["base"] = config.base.model_copy(update={"model": str(base.resolve())})
    return config.model_copy(update=changed)


def read_distill_config(path: Path | None) -> DistillConfig:
    """The settings of a YAML file, or the defaults.

    Raises:
        UsageError: no such file, or unknown keys.
    """
    body = read_yaml(path) if path else None
    return _validated(DistillConfig, body or {}, str(path))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UsageError: no such file, or no YAML.
    """
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else "no such file"
        raise UsageError(f"there is no config {path}: {why}; name a YAML file")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not YAML: {' '.join(str(error).split())}; correct or restore it"
        ) from error
