"""The models of a server by name, resolved anew for each request: a student that is promoted while
the server runs is served without a restart.

    amplified              overseer of the settings, with copies of the agent
    amplified:OVERSEER     another overseer, by its name
    amplified:TASK         scripted overseer of the run's own task

All other names are those of `reflux.models`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.evals.task import Task
from reflux.models import BASE, STUDENT, model_named
from reflux.server.errors import ApiError
from reflux.server.settings import ServeSettings
from reflux.tasks import task_named

AMPLIFIED = "amplified"


@dataclass(frozen=True)
class OneModel:
    """A model that answers without an overseer."""

    name: str
    """As the call log has it."""


@dataclass(frozen=True)
class Tree:
    """An overseer with copies of the agent."""

    name: str
    overseer: Overseer | None
    """None if the task brings its own."""
    task: Task | None = None


@dataclass(frozen=True)
class ListedModel:
    """A model as `/v1/models` shows it."""

    id: str
    created: int = 0
    """Seconds since 1970; 0 if unknown."""


class ServedModels:
    """The models that a run folder and its settings serve."""

    def __init__(
        self, folder: RunFolder, settings: ServeSettings, overseers: Mapping[str, Overseer]
    ) -> None:
        """
        Raises:
            UsageError: the settings name an unknown overseer, or an endpoint has a reserved name.
        """
        self._folder = folder
        self._settings = settings
        self.overseers = overseers
        """By name."""
        self.task = _task_of(folder)
        """The run's own."""
        if settings.overseer not in self._overseer_names():
            known = ", ".join(self._overseer_names())
            raise UsageError(f"no overseer is called {settings.overseer!r}; there are {known}")
        for name in settings.endpoints:
            if name in (BASE, STUDENT) or name.split(":")[0] == AMPLIFIED:
                raise UsageError(f"an endpoint is called {name!r}, which means something else here")

    def listed(self) -> list[ListedModel]:
        """All models: the tree of the run's own task first, which such a run can answer best."""
        students = self._folder.registry.list()
        promoted = self._folder.registry.current()
        own = self.task.name if self.task else None
        return [
            *([ListedModel(f"{AMPLIFIED}:{own}")] if own else []),
            ListedModel(AMPLIFIED),
            *(ListedModel(f"{AMPLIFIED}:{name}") for name in self.overseers if name != own),
            ListedModel(BASE),
            *([ListedModel(STUDENT, _seconds(promoted.created))] if promoted else []),
            *(ListedModel(student.id, _seconds(student.created)) for student in students),
            *map(ListedModel, self._settings.endpoints),
        ]

    def find(self, name: str) -> OneModel | Tree:
        """The model of a name.

        Raises:
            ApiError: no model has the name.
        """
        kind, colon, overseer = name.partition(":")
        if kind == AMPLIFIED and (not colon or overseer in self._overseer_names()):
            return self._tree(overseer or self._settings.overseer)
        try:
            return OneModel(model_named(self._folder, name, self._settings.endpoints))
        except UsageError as error:
            if name in (student.id for student in self._folder.registry.list()):
                raise  # The student is damaged.
            known = ", ".join(model.id for model in self.listed())
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}; there are {known}",
                param="model",
                code="model_not_found",
            ) from error

    def agent(self) -> str:
        """The name of the agent at this moment."""
        return self._settings.model or self._folder.current_model()

    def _tree(self, name: str) -> Tree:
        if self.task is not None and name == self.task.name and name not in self.overseers:
            return Tree(name, None, self.task)
        return Tree(name, self.overseers[name])

    def _overseer_names(self) -> list[str]:
        return list(dict.fromkeys([*self.overseers, *([self.task.name] if self.task else [])]))


def _task_of(folder: RunFolder) -> Task | None:
    try:
        config = folder.rounds_config()
        return task_named(config.task) if config else None
    except RefluxError:  # The task is a program's own, or another version wrote the config.
        return None


def _seconds(created: str) -> int:
    return int(datetime.fromisoformat(created).timestamp())
