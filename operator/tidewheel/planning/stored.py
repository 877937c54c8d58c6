"""What planners remember between windows, rounds and restarts: JSON of a schema, read back exactly or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

State = TypeVar("State")


class UnreadableState(ValueError):
    """A stored state is of another schema or damaged; a planner can begin anew, with what it learnt lost."""


def read_stored(text: str, build: Callable[[Mapping[str, Any]], State], *, schema: int, what: str) -> State:
    """The state of a JSON document.

    Args:
        text: as it was stored.
        build: makes the state of the document; whatever it raises means that this is none.
        schema: the one that this release writes.
        what: what is stored, for the message.

    Raises:
        UnreadableState: it is something else.
    """
    try:
        document = json.loads(text)
        if document["schema"] == schema:
            return build(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UnreadableState):
            raise
        raise UnreadableState(f"the stored {what} cannot be read: {error}") from error
    raise UnreadableState(f"the stored {what} is of schema {document['schema']}, this release reads {schema}")
