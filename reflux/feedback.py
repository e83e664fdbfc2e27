"""Feedback on recorded trajectories from Python."""

from contextlib import closing
from pathlib import Path

from reflux.agents.errors import UsageError
from reflux.graphs.traces.scoring import check_feedback
from reflux.graphs.traces.search import find_question
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Feedback
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter


def feedback(
    trajectory: str,
    score: float | None = None,
    comment: str = "",
    *,
    run: str | Path = "runs/default",
    name: str = "",
    author: str = "human",
    path: str = "",
) -> str:
    """Record a score, a comment, or both; returns the trajectory's id once they are on disk.

    Args:
        trajectory: its id, the beginning of it, or the name that its program gave it.
        score: from 0 to 1; True and False are 1 and 0.
        run: the run folder.
        name: what is scored, such as `helpful`.
        author: who says so; `human` counts as a human's judgement.
        path: of a node; the whole trajectory if empty.

    Raises:
        UsageError: no such trajectory, no score from 0 to 1, or neither score nor comment.
    """
    try:
        number = None if score is None else float(score)
    except (TypeError, ValueError):
        raise UsageError(f"the score {score!r:.80} is no number: give one from 0 to 1") from None
    given = check_feedback(Feedback(number, name, comment, author, path))
    file = Path(run) / "traces.db"
    if not file.is_file():
        raise UsageError(f"{run} holds no trajectories; name a run folder with run=")
    with closing(TraceStore(file)) as store:
        id, _ = find_question(store, trajectory)
        TrajectoryWriter(store).score(id, given).result()
    return id
