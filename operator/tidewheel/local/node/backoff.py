"""How long a container that keeps ending waits before it starts again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOffRule:
    """The kubelet's numbers: ten seconds, doubled up to five minutes, forgotten after ten minutes of running."""

    first_seconds: float = 10.0
    most_seconds: float = 300.0
    forget_after_seconds: float = 600.0


class BackOff:
    """The waiting times of one container. The first restart is immediate."""

    def __init__(self, rule: BackOffRule) -> None:
        self._rule = rule
        self._next: float | None = None

    def after(self, ran_seconds: float) -> float:
        """Seconds to wait before the next start, after a run that took `ran_seconds`."""
        if self._next is None or ran_seconds >= self._rule.forget_after_seconds:
            self._next = self._rule.first_seconds
            return 0.0
        wait, self._next = self._next, min(self._next * 2, self._rule.most_seconds)
        return wait
