"""How long it takes from one time of day to a later one.

    A video call started at 09:06:46 and ended at 16:19:23. How long was the call? Answer in
    HH:MM:SS.   →   07:12:37

H writes both times as seconds, and the difference as hours, minutes and seconds; all of the
arithmetic is the calculator's work. Left out are dates, and times with milliseconds, whose keys
in reasoning-gym 0.1.25 are often one millisecond short.
"""

from collections.abc import Sequence

from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.tasks.gym import Gym, GymTask
from reflux.tasks.replies import last_clock, matched, whole_said

PARAMETERS = ({"task_types": ["time"]}, {"task_types": ["time_seconds"]})
CLOCK = r"(\d\d:\d\d(?::\d\d)?)"
PARTS = ("{0} // 3600", "{0} // 60 - 60 * ({0} // 3600)", "{0} - 60 * ({0} // 60)")
"""Hours, minutes and seconds of the difference."""


def read(question: str) -> tuple[str, str, str]:
    """(start, end, form of the answer)."""
    found = matched(rf"\b{CLOCK}\D+?{CLOCK}(?!\d|:|\.\d).* in (HH:MM(?::SS)?)\.$", question)
    return found[1], found[2], found[3]


def written(clock: str) -> str:
    """A time as a sum of seconds, for the calculator."""
    units = (3600, 60, 1)
    return " + ".join(
        f"{int(part)} * {unit}" for part, unit in zip(clock.split(":"), units, strict=False)
    )


def act(parts: tuple[str, str, str], transcript: Sequence[Exchange]) -> Step:
    """The difference, then its parts."""
    start, end, form = parts
    if not transcript:
        asked = f"({written(end)}) - ({written(start)})"
        return Ask((SubQuestion(asked, to="tool:calculator"),))
    if len(transcript) == 1:
        apart = str(whole_said(transcript[0]))
        wanted = PARTS[: len(form.split(":"))]
        return Ask(tuple(SubQuestion(p.format(apart), to="tool:calculator") for p in wanted))
    return Answer(":".join(f"{whole_said(exchange):02d}" for exchange in transcript[1:]))


def time_intervals() -> GymTask:
    """The task."""
    return GymTask(
        "time_intervals",
        Gym("time_intervals", PARAMETERS),
        act,
        read,
        lambda question, reply: last_clock(reply),
        leaves="tool: the calculator subtracts and divides",
    )
