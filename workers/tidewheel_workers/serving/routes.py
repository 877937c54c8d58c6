"""What a gateway knows of the groups behind it, read again whenever the operator publishes a change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidewheel.api.ranktable import Routes
from tidewheel_workers.serving.watched_file import WatchedFile

if TYPE_CHECKING:
    from pathlib import Path

    from tidewheel.api.ranktable import RouteGroup


def routes_file(path: Path) -> WatchedFile[Routes]:
    """The file with the routes."""
    return WatchedFile(path, Routes.model_validate_json)


def usable_groups(routes: Routes | None) -> tuple[RouteGroup, ...]:
    """The groups that can answer: with at least one prefill and one decode, or combined with a decode."""
    if routes is None:
        return ()
    return tuple(group for group in routes.groups if group.decode and (group.prefill or group.combined))
