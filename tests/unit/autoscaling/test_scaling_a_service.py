"""A service's pods follow its load: windows of metrics on one side, the real controller and a world in miniature on the other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.autoscaling.loaded import PROFILE, LoadedWorld

from tidewheel.api.manifest import CONFIG_MAPS
from tidewheel.planning.autoscaling.memory import Memory
from tidewheel.planning.stored import UnreadableState

#: Requests a second, prompt tokens, answer tokens.
READING = (8.0, 1000.0, 20.0)
WRITING = (1.0, 100.0, 1500.0)


def world(**spec) -> LoadedWorld:
    spec["scaling"] = {"profile": PROFILE} | spec.pop("scaling", {})
    loaded = LoadedWorld(**spec)
    loaded.settle()
    return loaded


def memory_of(loaded: LoadedWorld) -> Memory:
    found = loaded.cache.get(CONFIG_MAPS, "ns", "chat-scaling")
    assert found is not None
    return Memory.from_text(found["data"]["memory.json"])


def test_long_prompts_bring_prefills_and_long_answers_decodes_and_back():
    loaded = world()
    loaded.carry(4, default=READING)
    reading = loaded.numbers
    assert reading[0] >= 5, "eight prompts of half a second need more than four prefills"
    assert reading[0] > 2 * reading[1]
    loaded.carry(8, default=WRITING)
    writing = loaded.numbers
    assert writing[0] < reading[0]
    assert writing[1] >= writing[0]
    loaded.carry(4, default=READING)
    assert loaded.numbers[0] >= 5
    assert any("prefill" in message for message in loaded.told("Scale"))


def test_bursts_bring_more_pods_than_as_many_requests_that_come_by_chance():
    by_chance, bursts = world(), world()
    by_chance.dispersion, bursts.dispersion = 1.0, 8.0
    for one in (by_chance, bursts):
        one.carry(6, default=(8.0, 1000.0, 200.0))
    assert bursts.found["default"]["requestsPerMinute"] == by_chance.found["default"]["requestsPerMinute"]
    assert bursts.numbers[0] > by_chance.numbers[0]
    assert bursts.numbers[1] >= by_chance.numbers[1]


def test_what_was_found_stands_in_the_status_with_its_reasons():
    loaded = world()
    loaded.carry(2, default=READING)
    found = loaded.found["default"]
    assert (found["prefill"], found["decode"]) == loaded.numbers
    assert found["needed"] == f"{loaded.numbers[0]}:{loaded.numbers[1]}"
    assert "needed for the load" in found["message"]
    assert found["requestsPerMinute"] >= 300


def test_advice_is_given_once_and_not_taken():
    loaded = world(mode="Advise")
    loaded.carry(8, default=READING)
    assert loaded.numbers == (1, 1)
    assert loaded.found["default"]["prefill"] >= 5
    advice = loaded.told("AdviseScale")
    assert advice
    loaded.carry(3, default=READING)
    assert loaded.told("AdviseScale") == advice


def test_without_a_planner_nothing_is_remembered_and_the_specs_numbers_stand():
    loaded = world(mode="Off", prefill={"replicas": 2})
    loaded.carry(2, default=READING)
    assert loaded.numbers == (2, 1)
    assert "scaling" not in loaded.service["status"]
    assert loaded.cache.get(CONFIG_MAPS, "ns", "chat-scaling") is None


def test_a_planner_that_is_turned_off_gives_the_numbers_back_to_the_spec():
    loaded = world()
    loaded.carry(3, default=READING)
    loaded.change(scaling={"mode": "Off"})
    loaded.settle()
    assert loaded.numbers == (1, 1)
    assert loaded.cache.get(CONFIG_MAPS, "ns", "chat-scaling") is None


def test_an_operator_that_begins_anew_keeps_the_numbers_and_goes_on_with_the_next_window():
    loaded, twin = world(), world()
    for one in (loaded, twin):
        one.carry(3, default=READING)
    before = loaded.numbers
    loaded.restart_operator()
    loaded.settle()
    assert loaded.numbers == before
    for one in (loaded, twin):
        one.carry(2, default=(12.0, 1000.0, 20.0))
    assert loaded.numbers == twin.numbers
    assert memory_of(loaded).numbers == memory_of(twin).numbers
    assert memory_of(loaded).states == memory_of(twin).states


def test_a_window_is_decided_before_anything_is_done_about_it_and_only_once():
    loaded = world()
    loaded.carry(1, default=READING)
    loaded.end_window(default=(12.0, 1000.0, 20.0))
    plan = loaded.plan()
    kinds = [manifest["kind"] for manifest in plan.apply]
    names = [manifest["metadata"]["name"] for manifest in plan.apply]
    assert names.index("chat-scaling") < kinds.index("Pod")
    loaded.settle()
    remembered = memory_of(loaded)
    loaded.reconcile()
    assert memory_of(loaded) == remembered


def test_a_memory_that_cannot_be_read_is_begun_anew_from_the_pods_there_are():
    loaded = world()
    loaded.carry(3, default=READING)
    found = loaded.cache.get(CONFIG_MAPS, "ns", "chat-scaling")
    found["data"]["memory.json"] = '{"schema": 99}'
    loaded.put(found, CONFIG_MAPS)
    with pytest.raises(UnreadableState, match="schema 99"):
        Memory.from_text(found["data"]["memory.json"])
    before = loaded.numbers
    loaded.restart_operator()
    loaded.settle()
    assert loaded.numbers == before, "nobody goes for what cannot be read"
    (told,) = loaded.told("ForgetLoads")
    assert "schema 99" in told
    assert [reason for reason, _ in loaded.events].count("LearningBegins") == 1
    loaded.end_window(default=READING)
    loaded.settle()
    assert loaded.numbers[0] >= 5
    assert memory_of(loaded).at == loaded.book.window(("ns", "chat")).last.at


def test_a_memory_that_is_gone_is_told_of_and_the_pods_stay():
    loaded = world()
    loaded.carry(3, default=READING)
    before = loaded.numbers
    loaded.lose_memory()
    loaded.settle()
    assert loaded.numbers == before
    assert "is gone" in loaded.told("ForgetLoads")[0]
    loaded.carry(2, default=READING)
    assert loaded.numbers[0] >= 5


def test_each_scenario_with_groups_of_its_own_is_planned_by_its_own_load():
    code = {"name": "code", "match": {"modelAliases": ["coder"]}, "groups": {"replicas": 1}}
    loaded = world(scenarios=[code])
    loaded.carry(4, default=(0.2, 100.0, 20.0), code=READING)
    assert loaded.number("prefill", "code") >= 5
    assert loaded.numbers == (1, 1)


def test_requests_of_scenarios_without_groups_are_the_default_groups_load():
    loaded = world(scenarios=[{"name": "code", "match": {"modelAliases": ["coder"]}}])
    loaded.carry(4, default=(4.0, 1000.0, 20.0), code=(4.0, 1000.0, 20.0))
    assert loaded.numbers[0] >= 5


def test_a_suspended_service_is_not_planned():
    loaded = world()
    loaded.carry(2, default=READING)
    loaded.change(suspend=True)
    loaded.settle()
    assert loaded.numbers == (0, 0)


def test_groups_come_only_when_the_ones_there_are_would_be_too_large():
    loaded = LoadedWorld(
        scaling={"profile": PROFILE, "podsPerGroup": 4}, rollout={"maxSurgeGroups": 16, "maxSkewPercent": 400}
    )
    loaded.wanted_groups = lambda _: 16  # what a planner may ask for here
    loaded.settle()
    loaded.carry(4, default=READING)
    groups = {
        pod["metadata"]["labels"]["tidewheel.dev/group"]
        for pod in loaded.pods
        if "gateway" not in pod["metadata"]["name"]
    }
    prefill, decode = loaded.numbers
    assert len(groups) == min(-(-(prefill + decode) // 4), decode)


@settings(max_examples=8, deadline=None)
@given(
    loads=st.lists(
        st.tuples(st.floats(0, 12), st.floats(1, 1500), st.floats(1, 400)), min_size=1, max_size=3
    ),
    budget=st.integers(2, 12),
    least=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_whatever_comes_the_budget_holds_and_each_role_has_its_least(loads, budget, least):
    if sum(least) > budget:
        least = (1, 1)
    bounds = {role: {"min": few} for role, few in zip(("prefill", "decode"), least, strict=True)}
    loaded = world(scaling={"deviceBudget": budget, "holdSeconds": 30, **bounds})
    assert loaded.numbers == least, "from the beginning"
    for load in loads:
        loaded.carry(default=load)
        assert sum(loaded.numbers) <= budget
        for number, few in zip(loaded.numbers, least, strict=True):
            assert number >= few


def test_a_budget_that_holds_not_one_of_each_takes_no_scenario_away():
    scenarios = [
        {"name": name, "match": {"modelAliases": [name]}, "groups": {"replicas": 1}}
        for name in ("code", "draw")
    ]
    loaded = world(scenarios=scenarios, scaling={"deviceBudget": 4})
    loaded.carry(3, default=READING, code=READING, draw=READING)
    for name in ("default", "code", "draw"):
        assert loaded.number("prefill", name) >= 1
        assert loaded.number("decode", name) >= 1
    assert "BudgetTooSmall" in {one["reason"] for one in loaded.found.values()}


def test_a_budget_that_binds_says_so():
    loaded = world(scaling={"deviceBudget": 4})
    loaded.carry(3, default=(20.0, 1000.0, 200.0))
    assert sum(loaded.numbers) == 4
    assert loaded.found["default"]["reason"] in ("BudgetBinds", "BudgetTooSmall")
    assert "budget" in loaded.found["default"]["message"]


#: So little that a pod of each role would be idle most of the time.
QUIET = (0.2, 100.0, 20.0)
#: Long answers beside many prompts, which would slow them down beyond what is promised.
BOTH = (6.0, 1000.0, 300.0)


def ways(loaded: LoadedWorld) -> set[tuple[bool, bool]]:
    """Of the groups in the routes: whether each is combined, and whether it has prefills there."""
    return {(group.combined, bool(group.prefill)) for group in loaded.routes().groups}


def test_a_planner_that_may_choose_combines_a_quiet_scenario_and_divides_it_when_it_is_busy():
    loaded = world(disaggregation="Auto", scaling={"holdSeconds": 0}, slo={"ttftMs": 2000, "tpotMs": 25})
    loaded.carry(3, default=QUIET)
    assert loaded.numbers == (1, 1), "it waits for four windows"
    loaded.carry(2, default=QUIET)
    assert (loaded.numbers, ways(loaded)) == ((0, 1), {(True, False)})
    assert loaded.service["status"]["ratio"] == "0:1"
    assert any("Combines" in message and "1 decode to 0 and 1" in message for message in loaded.told("Scale"))
    windows = 0
    while loaded.numbers[0] == 0:
        assert ways(loaded) == {(True, False)}
        loaded.carry(1, default=BOTH)
        windows += 1
        assert windows <= 12
    assert windows >= 4, "it waits for as many to go back"
    assert ways(loaded) == {(False, True)}
    assert loaded.found["default"]["reason"] == "Divides"
    assert "no number that do both" in loaded.found["default"]["message"]


def test_an_operator_that_begins_anew_goes_on_counting_the_windows_of_a_choice():
    loaded, twin = world(disaggregation="Auto"), world(disaggregation="Auto")
    for one in (loaded, twin):
        one.carry(2, default=QUIET)
    loaded.restart_operator()
    for one in (loaded, twin):
        one.carry(2, default=QUIET)
    assert loaded.numbers == twin.numbers == (0, 1)


def test_combined_groups_stay_so_when_what_was_learnt_is_gone():
    loaded = world(disaggregation="Auto")
    loaded.carry(4, default=QUIET)
    assert loaded.numbers == (0, 1)
    found = loaded.cache.get(CONFIG_MAPS, "ns", "chat-scaling")
    found["data"]["memory.json"] = '{"schema": 99}'
    loaded.put(found, CONFIG_MAPS)
    loaded.settle()
    assert (loaded.numbers, ways(loaded)) == ((0, 1), {(True, False)})
    assert loaded.told("ForgetLoads")
    loaded.carry(1, default=QUIET)
    assert loaded.numbers == (0, 1)


def test_advice_to_combine_is_given_and_not_taken():
    loaded = world(mode="Advise", disaggregation="Auto")
    loaded.carry(6, default=QUIET)
    assert loaded.numbers == (1, 1)
    found = loaded.found["default"]
    assert (found["prefill"], found["decode"], found["combined"], found["reason"]) == (0, 1, 1, "Combines")
    assert len(loaded.told("AdviseScale")) == 1


def test_who_shall_have_no_prefills_is_scaled_by_its_decodes():
    loaded = world(disaggregation="Never")
    loaded.carry(3, default=READING)
    assert loaded.numbers[0] == 0
    assert loaded.numbers[1] > 1
    assert loaded.found["default"]["needed"].startswith("0:")
    loaded.change(disaggregation="Always")
    loaded.carry(1, default=READING)
    assert loaded.numbers[0] >= 5
    assert ways(loaded) == {(False, True)}


@settings(max_examples=8, deadline=None)
@given(
    loads=st.lists(st.sampled_from([QUIET, READING, WRITING, BOTH]), min_size=2, max_size=6),
    budget=st.integers(3, 12),
)
def test_whatever_is_chosen_the_budget_holds_and_there_is_a_decode(loads, budget):
    loaded = world(disaggregation="Auto", scaling={"deviceBudget": budget, "holdSeconds": 0})
    for load in loads:
        loaded.carry(2, default=load)
        prefill, decode = loaded.numbers
        assert prefill + decode <= budget
        assert decode >= 1
        assert ways(loaded) == {(prefill == 0, prefill > 0)}
