"""One gateway's forwarding as its requests find it: the settings, the routes in force, the dispatch and the room to wait in."""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING, Any

from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel_workers.serving.dispatch import Call, Dispatch, DispatchSettings
from tidewheel_workers.serving.forwarding import Forwarding, LossPolicy
from tidewheel_workers.serving.in_flight import InFlight
from tidewheel_workers.serving.prompt_facts import facts_of
from tidewheel_workers.serving.routes import usable_groups
from tidewheel_workers.serving.scenarios import aliases_in, scenario_of
from tidewheel_workers.serving.waiting_room import WaitingRoom

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tidewheel.api.ranktable import RouteGroup, Routes
    from tidewheel.api.scenarios import RouteScenario
    from tidewheel_workers.serving.http1.messages import Request
    from tidewheel_workers.serving.settings import GatewaySettings


class Forwarder:
    """What all requests of a gateway's process share.

    Args:
        settings: the gateway's.
        processes: how many such processes the gateway has; they know as little of each other as gateways do.
    """

    def __init__(self, settings: GatewaySettings, *, processes: int = 1) -> None:
        self.random = random.Random()  # noqa: S311 - spreads load
        self.dispatch = Dispatch(
            DispatchSettings(
                fill_first=settings.prefill_order == "FillFirst",
                has_affinity=settings.prefill_affinity == "Prefix",
                candidates=settings.candidates,
                most_waiting=math.ceil(settings.max_waiting / processes),
                short_prompt_characters=settings.short_prompt_characters,
            ),
            self.random.random,
        )
        self.waiting_room = WaitingRoom(self.dispatch)
        self.policy = LossPolicy(on_decode_loss=settings.on_decode_loss, default_text=settings.default_text)
        self.in_flight = InFlight()
        self.aliases: frozenset[str] = frozenset()  # further names of the model
        self._processes = processes
        self._ttft_seconds = settings.ttft_deadline_seconds
        self._scenarios: tuple[RouteScenario, ...] = ()
        self._default_groups: frozenset[str] | None = None

    @property
    def groups(self) -> tuple[RouteGroup, ...]:
        """The groups that requests may be sent to now."""
        return self.dispatch.groups

    def follow(self, routes: Routes) -> None:
        """Forward as the operator says from now on."""
        self._scenarios = routes.scenarios
        self.aliases = aliases_in(routes.scenarios)
        self._default_groups = _names(routes.default_groups)
        gateways = routes.gateways * self._processes
        self.in_flight.follow(routes.scenarios, sharers=gateways)
        self.dispatch.set_groups(usable_groups(routes), time.monotonic(), gateways=gateways)
        self.waiting_room.look_around()

    def forwarding_of(self, request: Request, body: Mapping[str, Any]) -> tuple[Forwarding, str]:
        """A new request's way through the servers, and the name of its scenario."""
        facts = facts_of(body)
        found = scenario_of(
            self._scenarios, headers=request.headers, path=request.path, body=body, facts=facts
        )
        ttft_seconds = self._ttft_seconds
        if found is not None and found.ttft_deadline_seconds is not None:
            ttft_seconds = found.ttft_deadline_seconds
        call = Call(
            ttft_seconds=ttft_seconds,
            facts=facts,
            groups=_names(found.groups) if found is not None else self._default_groups,
            is_stream=bool(body.get("stream")),
        )
        forwarding = Forwarding(call=call, dispatch=self.dispatch, policy=self.policy)
        return forwarding, found.name if found is not None else DEFAULT_SCENARIO

    def can_resume(self, body: Mapping[str, Any]) -> bool:
        """Whether such an answer is resumed when its decode is lost: a stream of one choice."""
        return (
            self.policy.on_decode_loss == "Resume" and bool(body.get("stream")) and body.get("n") in (None, 1)
        )

    def close(self) -> None:
        """Nobody waits any more."""
        self.waiting_room.close()


def _names(groups: Iterable[str] | None) -> frozenset[str] | None:
    """The groups that may serve a request; None stands for all."""
    return frozenset(groups) if groups is not None else None
