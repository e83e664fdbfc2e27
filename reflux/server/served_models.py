"""The models of a server by name, found anew for each request: a student that is promoted or made
while the server runs is served without a restart.

    amplified              H of the settings, with copies of X
    amplified:OVERSEER     another H, by its name in `reflux/overseers.py`
    amplified:TASK         the scripted H of the run's own task
    base                   the untrained model
    student                the promoted student; there is none before the first promotion
    STUDENT                any student of the run, by its id
    ENDPOINT               a model of another endpoint, by its name in the settings
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.cli.ask import config_of
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.evals.task import Task
from reflux.server.errors import ApiError
from reflux.server.settings import ServeSettings
from reflux.tasks import task_named

AMPLIFIED, BASE, STUDENT = "amplified", "base", "student"


@dataclass(frozen=True)
class OneModel:
    """A model that answers alone."""

    name: str
    """As the call log has it."""


@dataclass(frozen=True)
class Tree:
    """H with copies of X."""

    name: str
    overseer: Overseer | None
    """None where the task has its own."""
    task: Task | None = None


@dataclass(frozen=True)
class Listed:
    """A model as the list shows it."""

    id: str
    created: int = 0
    """Seconds since 1970; 0 where nobody knows."""


class ServedModels:
    """What a run folder and its settings have to serve."""

    def __init__(
        self, folder: RunFolder, settings: ServeSettings, overseers: Mapping[str, Overseer]
    ) -> None:
        """
        Raises:
            UsageError: the settings name an overseer that there is not, or an endpoint's name is
                taken.
        """
        self._folder = folder
        self._settings = settings
        self.overseers = overseers
        """H by name."""
        self.task = _task_of(folder)
        """The run's own."""
        if settings.overseer not in self._known():
            raise UsageError(
                f"no overseer is called {settings.overseer!r}; there are {', '.join(self._known())}"
            )
        for name in settings.endpoints:
            if name in (BASE, STUDENT) or name.split(":")[0] == AMPLIFIED:
                raise UsageError(f"an endpoint is called {name!r}, which means something else here")

    def listed(self) -> list[Listed]:
        """All models, those that are told apart by H first, and that of the run's own task before
        all: it is what such a run can answer."""
        students = self._folder.registry.list()
        promoted = self._folder.registry.current()
        return [
            *([Listed(f"{AMPLIFIED}:{self.task.name}")] if self.task else []),
            Listed(AMPLIFIED),
            *(Listed(f"{AMPLIFIED}:{name}") for name in self._known() if not self._is_own(name)),
            Listed(BASE),
            *([Listed(STUDENT, _seconds(promoted.created))] if promoted else []),
            *(Listed(student.id, _seconds(student.created)) for student in students),
            *map(Listed, self._settings.endpoints),
        ]

    def find(self, name: str) -> OneModel | Tree:
        """What answers under a name.

        Raises:
            ApiError: there is no such model.
        """
        if name in self._settings.endpoints or name == BASE:
            return OneModel(name)
        if name == STUDENT and (promoted := self._folder.registry.current()) is not None:
            return OneModel(promoted.id)
        head, colon, rest = name.partition(":")
        if head == AMPLIFIED and (not colon or rest in self._known()):
            return self._tree(rest or self._settings.overseer)
        try:
            return OneModel(self._folder.registry.get(name).id)
        except UsageError as error:
            if name in (student.id for student in self._folder.registry.list()):
                raise
            known = ", ".join(model.id for model in self.listed())
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}; there are {known}",
                param="model",
                code="model_not_found",
            ) from error

    def x(self) -> str:
        """The name of X at this moment."""
        return self._settings.model or self._folder.current_model()

    def _tree(self, name: str) -> Tree:
        if self.task is not None and name == self.task.name and name not in self.overseers:
            return Tree(name, None, self.task)
        return Tree(name, self.overseers[name])

    def _is_own(self, overseer: str) -> bool:
        return self.task is not None and overseer == self.task.name

    def _known(self) -> list[str]:
        return list(dict.fromkeys([*self.overseers, *([self.task.name] if self.task else [])]))


def _task_of(folder: RunFolder) -> Task | None:
    try:
        config = config_of(folder)
        return task_named(config.task) if config else None
    except RefluxError:  # The task is a program's own, or its config another version's.
        return None


def _seconds(created: str) -> int:
    return int(datetime.fromisoformat(created).timestamp())
