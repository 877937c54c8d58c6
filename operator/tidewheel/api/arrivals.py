"""How gateways count arrivals by the clock: what they and the planner must agree on."""

from __future__ import annotations

#: Seconds of Unix time that are told apart; those so many seconds from each other are counted together.
SECONDS = 32
