"""A table of how OpenAI-compatible endpoints behave, and what Reflux must make of each.

    with serve(BEHAVIORS["think block"]) as served:
        ...  # served.url, served.requests

The words of refusals are those of real servers, as their users quote them.
"""

from contextlib import AbstractContextManager

from tests.support.endpoint_errors import errors
from tests.support.endpoint_reasoning import reasoning
from tests.support.endpoint_refusals import refused_fields
from tests.support.endpoint_replies import odd_replies, streams
from tests.support.endpoint_says import Behavior
from tests.support.endpoint_server import Served, serving
from tests.support.endpoint_tools import tool_calls

__all__ = ["BEHAVIORS", "Behavior", "serve"]

BEHAVIORS: dict[str, Behavior] = {
    behavior.name: behavior
    for family in (reasoning, refused_fields, errors, odd_replies, streams, tool_calls)
    for behavior in family()
}
"""By name, in families."""


def serve(behavior: Behavior) -> AbstractContextManager[Served]:
    """The behavior's server, until the block ends."""
    return serving(behavior.respond)
