"""Which backend is the best one to ask: one table for the ranking."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tidewheel.api.ranktable import Backend, RouteGroup
from tidewheel_workers.serving.affinity import Affinity
from tidewheel_workers.serving.candidates import FEW, Candidates, Pool
from tidewheel_workers.serving.ledger import Ledger


def group(name: str, prefill: int = 2, decode: int = 1) -> RouteGroup:
    def backends(role: str, count: int) -> tuple[Backend, ...]:
        return tuple(Backend(name=f"{name}{role}{i}", address="127.0.0.1") for i in range(count))

    return RouteGroup(name=name, prefill=backends("p", prefill), decode=backends("d", decode))


def combined(name: str, decode: int = 2) -> RouteGroup:
    """A group whose decodes compute the prompts, too."""
    return group(name, prefill=0, decode=decode).model_copy(update={"combined": True})


class World:
    """Backends with a past."""

    def __init__(
        self, *groups: RouteGroup, fill_first: bool = False, has_affinity: bool = True, seed: int = 1
    ) -> None:
        self.groups = groups
        self.ledger = Ledger(lambda: 0.5)
        self.backends = {b.name: b for g in groups for b in (*g.prefill, *g.decode)}
        self.candidates = Candidates(
            self.ledger, fill_first=fill_first, has_affinity=has_affinity, jitter=random.Random(seed).random
        )

    def holds(self, **counts: int) -> World:
        for name, count in counts.items():
            for _ in range(count):
                self.ledger.took(self.ledger.ask(self.backends[name], 0.0), 0.0)
        return self

    def full(self, *names: str) -> World:
        for name in names:
            self.ledger.refused(self.ledger.ask(self.backends[name], 0.0), "busy", 0.0)
        return self

    def lost(self, *names: str) -> World:
        for name in names:
            self.ledger.lost(self.ledger.ask(self.backends[name], 0.0), 0.0)
        return self

    def best(
        self, at: float = 0.0, *, role: str = "prefill", names: frozenset[str] | None = None, **asked
    ) -> str | None:
        place = self.candidates.best(Pool.of(role, self.groups, names), at, **asked)
        return place.name if place else None


@pytest.mark.parametrize(
    ("world", "asked", "want"),
    [
        pytest.param(World(group("a")).holds(ap0=1), {}, "ap1", id="the fewest requests"),
        pytest.param(World(group("a")).holds(ap1=1).full("ap0"), {}, "ap1", id="not a full one"),
        pytest.param(World(group("a")).full("ap0", "ap1"), {}, None, id="nobody when all are full"),
        pytest.param(World(group("a")).holds(ap1=3).full("ap0"), {"at": 1.0}, "ap1", id="room before a probe"),
        pytest.param(World(group("a")).holds(ap1=3).lost("ap0"), {}, "ap1", id="not one that lost a request"),
        pytest.param(
            World(group("a")).holds(ap1=3), {"suspects": {"ap0"}}, "ap1", id="nor one that lost this request"
        ),
        pytest.param(
            World(group("a", prefill=1), group("b", prefill=1)).holds(bp0=3).full("ad0"), {}, "bp0",
            id="a group whose decodes have room",
        ),
        pytest.param(
            World(group("a", prefill=1), group("b", prefill=1)).holds(bp0=3), {"names": {"b"}}, "bp0",
            id="only the groups that may serve it",
        ),
        pytest.param(World(group("a", decode=0), group("b", prefill=0)), {}, None, id="no half groups"),
        pytest.param(World(group("a", decode=2)).holds(ad0=1), {"role": "decode"}, "ad1", id="the idlest decode"),
        pytest.param(World(group("a"), fill_first=True).holds(ap1=2), {}, "ap1", id="filling first, the fullest"),
        pytest.param(
            World(group("a", decode=2), fill_first=True).holds(ad0=1), {"role": "decode"}, "ad1",
            id="decodes are never filled first",
        ),
        pytest.param(
            World(group("a")).holds(ap0=1, ap1=2), {"fits": lambda holds, _: holds != 1}, "ap1",
            id="only where the first token would come in time",
        ),
        pytest.param(World(combined("a")).holds(ad0=1), {}, "ad1", id="a decode that does both"),
        pytest.param(
            World(group("a", prefill=1), combined("b")).holds(ap0=2, bd0=1), {}, "bd1",
            id="whichever has the fewest, prefill or decode that does both",
        ),
        pytest.param(
            World(group("a", prefill=1), combined("b")).holds(ap0=1, bd0=2, bd1=2),
            {"fits": lambda holds, does: does == "decode" or holds < 1}, "bd0",
            id="each is judged by what it does",
        ),
        pytest.param(
            World(group("a", prefill=1), combined("b")).holds(ap0=1).full("bd0", "bd1"), {}, "ap0",
            id="a combined group whose decodes are full has no room",
        ),
        pytest.param(
            World(combined("a"), fill_first=True).holds(ad0=1), {}, "ad1",
            id="nor are those filled first that do both",
        ),
    ],
)  # fmt: skip
def test_the_best_backend(world, asked, want):
    assert world.best(**asked) == want


PREFIX = 12345
NAMES = [f"ap{i}" for i in range(4)]
FIRST, SECOND, *_ = Affinity(NAMES).preferred(PREFIX)


@pytest.mark.parametrize(
    ("holds", "has_affinity", "want"),
    [
        pytest.param({FIRST: 1}, True, FIRST, id="the cached one, although it has a request"),
        pytest.param({FIRST: 2}, True, SECOND, id="the next one, when it has more than its share"),
        pytest.param(dict.fromkeys(NAMES, 5), True, FIRST, id="a share grows with what all have"),
        pytest.param(
            {name: 1 for name in NAMES if name != "ap3"}, False, "ap3", id="not if it is not wanted"
        ),
    ],
)
def test_a_prompt_goes_where_its_beginning_may_be_cached(holds, has_affinity, want):
    world = World(group("a", prefill=4), has_affinity=has_affinity).holds(**holds)
    assert world.best(prefixes=[PREFIX]) == want


def test_the_longer_prefix_comes_first():
    longer = next(prefix for prefix in range(1000) if Affinity(NAMES).preferred(prefix)[0] != FIRST)
    world = World(group("a", prefill=4))
    assert world.best(prefixes=[longer, PREFIX]) == Affinity(NAMES).preferred(longer)[0]


def test_of_many_some_are_drawn_and_equals_are_chosen_evenly():
    world = World(group("a", prefill=4 * FEW))
    chosen = Counter(world.best() for _ in range(2000))
    assert len(chosen) > 3 * FEW
    busy = {name: 1 for name in world.backends if name.startswith("ap") and name != "ap7"}
    world.holds(**busy)
    assert Counter(world.best() for _ in range(500))["ap7"] > 30  # drawn one time in eight


def test_of_many_the_last_free_one_is_found():
    world = World(group("a", prefill=4 * FEW))
    world.full(*(name for name in world.backends if name.startswith("ap") and name != "ap7"))
    assert {world.best() for _ in range(20)} == {"ap7"}


def test_a_decode_with_room_is_one_that_would_take_a_prompt():
    world = World(group("a"), group("b"), group("c")).holds(bd0=1).full("ad0")
    pool = Pool.of("prefill", world.groups, None)
    assert world.candidates.decode_with_room(pool, 0.0, busy=frozenset()).name == "cd0"
    assert world.candidates.decode_with_room(pool, 0.0, busy={"c"}).name == "bd0"
    assert world.candidates.decode_with_room(pool, 9.0, busy={"b", "c"}) is None


def test_decodes_that_do_both_are_asked_as_such_and_not_once_more_for_short_prompts():
    world = World(combined("a"))
    pool = Pool.of("prefill", world.groups, None)
    assert {(place.name, place.role) for place in pool.places} == {("ad0", "decode"), ("ad1", "decode")}
    assert world.candidates.decode_with_room(pool, 0.0, busy=frozenset()) is None
