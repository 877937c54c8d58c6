"""A service's life, driven in any order: users, kubelets and faults on one side, the real controller on the other."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.unit.planning.world import World

from tidewheel.api.manifest import PODS
from tidewheel.api.meta import LABEL_GROUP, LABEL_ROLE, LABEL_SERVICE

counts = st.integers(1, 3)


class LifeOfAService(RuleBasedStateMachine):
    """Whatever happens in whatever order, the world's checks hold, and in the end the service is settled."""

    @initialize(
        groups=st.integers(0, 3),
        prefill=counts,
        decode=counts,
        surge=st.integers(0, 2),
        unavailable=st.integers(0, 2),
        serves=st.booleans(),
    )
    def begin(self, groups, prefill, decode, surge, unavailable, serves):
        if surge + unavailable == 0:
            surge = 1
        self.world = World(
            groups=groups,
            prefill={"replicas": prefill},
            decode={"replicas": decode},
            rollout={"maxSurgeGroups": surge, "maxUnavailableGroups": unavailable},
        )
        self.world.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": "chat-aaaaa-0-decode-0",
                    "namespace": "ns",
                    "uid": "uid-foreign",
                    "labels": {LABEL_SERVICE: "chat", LABEL_ROLE: "decode", LABEL_GROUP: "chat-aaaaa-0"},
                },
                "status": {"phase": "Failed"},
            }
        )

        if serves:
            self.world.settle()

    def a_pod(self, number: int) -> str | None:
        names = self.world.names("Pod")
        return names[number % len(names)] if names else None

    @rule()
    def operator_looks(self):
        self.world.reconcile()

    @rule(seconds=st.sampled_from([1, 3, 30, 400]))
    def time_passes(self, seconds):
        self.world.now += timedelta(seconds=seconds)
        self.world.reconcile()

    @rule(number=st.integers(0, 20))
    def a_pod_gets_on(self, number):
        if name := self.a_pod(number):
            self.world.run_pod(name)

    @rule()
    def all_pods_get_on(self):
        for _ in range(2):
            for one in self.world.pods:
                self.world.run_pod(one["metadata"]["name"])
            self.world.look_at_ranks()
            self.world.reconcile()

    @rule()
    def workers_read_their_rank_tables(self):
        self.world.look_at_ranks()

    @rule(number=st.integers(0, 20))
    def a_pod_fails(self, number):
        if name := self.a_pod(number):
            self.world.fail_pod(name)

    @rule(number=st.integers(0, 20), restarts=st.integers(1, 5))
    def a_pod_crashes(self, number, restarts):
        if name := self.a_pod(number):
            self.world.crash_pod(name, restarts=restarts)

    @rule(number=st.integers(0, 20), node=st.sampled_from(["a", "b"]))
    def a_pod_is_bound(self, number, node):
        if (name := self.a_pod(number)) and not self.world.node_of(name):
            if not self.world.has_node(node):
                self.world.put_node(node)
            self.world.bind(name, node)

    @rule(
        node=st.sampled_from(["a", "b"]),
        ready=st.booleans(),
        sick=st.sampled_from(["", "Recovering", "BrokenLink"]),
    )
    def a_node_changes(self, node, ready, sick):
        self.world.put_node(node, ready=ready, sick=sick)

    @rule(node=st.sampled_from(["a", "b"]))
    def a_node_is_lost_for_good(self, node):
        self.world.delete_node(node)

    @rule(number=st.integers(0, 20))
    def a_pod_stumbles(self, number):
        if name := self.a_pod(number):
            self.world.unready_pod(name)

    @rule(number=st.integers(0, 20))
    def someone_deletes_a_pod(self, number):
        if name := self.a_pod(number):
            self.world.delete_pod(name)

    @rule(number=st.integers(0, 20))
    def a_pod_vanishes(self, number):
        if name := self.a_pod(number):
            self.world.vanish(name)

    @rule()
    def leaving_pods_end(self):
        self.world.end_pods()

    @rule(groups=st.integers(0, 3))
    def the_user_scales_groups(self, groups):
        self.world.change(groups=groups)

    @rule(prefill=counts, decode=counts)
    def the_user_changes_the_ratio(self, prefill, decode):
        self.world.change(prefill={"replicas": prefill}, decode={"replicas": decode})

    @rule(prefill=counts, decode=counts, flips=st.just("Enabled"), seconds=st.integers(1, 20))
    def the_ratio_of_a_service_that_serves_begins_to_change(self, prefill, decode, flips, seconds):
        self.heal()
        self.the_user_switches_role_flips(flips)
        self.world.change(prefill={"replicas": prefill}, decode={"replicas": decode})
        for _ in range(seconds):
            self.all_pods_get_on()
            self.world.now += timedelta(seconds=1)

    @rule(disaggregation=st.sampled_from(["Always", "Never"]))
    def the_user_combines_or_divides(self, disaggregation):
        self.world.change(disaggregation=disaggregation)

    @rule(
        replicas=st.integers(0, 2),
        prefill=st.none() | counts,
        decode=counts,
        when_down=st.sampled_from(["UseDefault", "Wait"]),
        others=st.booleans(),
        disaggregation=st.sampled_from([None, "Always", "Never"]),
    )
    def the_user_gives_scenarios_groups(self, replicas, prefill, decode, when_down, others, disaggregation):
        groups = {"replicas": replicas, "prefill": prefill, "decode": decode, "whenDown": when_down}
        groups["disaggregation"] = disaggregation
        code = {"name": "code", "match": {"modelAliases": ["coder"]}, "groups": groups}
        short = {"name": "short", "match": {"promptLength": {"max": 9}}, "groups": {"replicas": 1}}
        self.world.change(scenarios=[code, short] if others else [code])

    @rule(
        scenario=st.sampled_from(["default", "code"]),
        role=st.sampled_from(["prefill", "decode"]),
        replicas=st.integers(0, 7),
        is_rival=st.booleans(),
    )
    def an_autoscaler_scales(self, scenario, role, replicas, is_rival):
        name = f"{'rival' if is_rival else 'scale'}-{scenario}-{role}"
        self.world.put_scaler(name, scenario=scenario, role=role, replicas=replicas)

    @rule()
    def the_autoscalers_are_removed(self):
        self.world.delete_scalers()

    @rule()
    def the_user_takes_the_scenarios_back(self):
        self.world.change(scenarios=[])

    @rule(percent=st.sampled_from([0, 50, 200]))
    def the_user_changes_the_bound_of_the_ratio(self, percent):
        self.world.change(rollout=self.world.service["spec"]["rollout"] | {"maxSkewPercent": percent})

    @rule(flips=st.sampled_from(["Enabled", "Disabled"]))
    def the_user_switches_role_flips(self, flips):
        self.world.change(rollout=self.world.service["spec"]["rollout"] | {"roleFlips": flips})

    @rule(image=st.sampled_from(["one", "two", "three"]))
    def the_user_changes_the_image(self, image):
        self.world.change(image=image)

    @rule(replicas=counts)
    def the_user_scales_gateways(self, replicas):
        self.world.change(gateway={"replicas": replicas})

    @rule(suspend=st.booleans())
    def the_user_suspends_or_resumes(self, suspend):
        self.world.change(suspend=suspend)

    @rule(kind=st.sampled_from(["Pod", "Service", "ConfigMap"]))
    def the_server_begins_to_refuse(self, kind):
        self.world.refuse[kind] = (403, "exceeded quota")

    @rule()
    def the_server_refuses_no_more(self):
        self.world.refuse.clear()

    @invariant()
    def nothing_of_others_is_touched(self):
        if hasattr(self, "world"):
            foreign = self.world.cache.get(PODS, "ns", "chat-aaaaa-0-decode-0")
            assert foreign is not None
            assert "deletionTimestamp" not in foreign["metadata"]

    def heal(self):
        """Nothing is in the way any more, and the service has come to rest."""
        world = self.world
        for node in "ab":
            world.put_node(node)
        world.refuse.clear()
        world.refusals.clear()
        for one in world.pods:
            if (one.get("status") or {}).get("phase") != "Failed":
                world.run_pod(one["metadata"]["name"])
        world.settle()

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        self.heal()
        spec = world.controller_spec()
        assert world.condition("Progressing")["reason"] == "Settled"
        assert world.condition("Degraded")["status"] == "False"
        scenarios = ["default", *(one.name for one in spec.scenarios if one.groups)]
        groups = sum(world.wanted_groups(scenario) for scenario in scenarios)
        members = sum(
            sum(world.wanted_pods(scenario)) for scenario in scenarios if world.wanted_groups(scenario)
        )
        gateways = 0 if spec.suspend else spec.gateway.replicas
        assert len(world.all_pods) == members + gateways
        expected = "Suspended" if spec.suspend else "Serving" if groups else "ScaledToZero"
        assert world.condition("Ready")["reason"] == expected
        writes = world.writes
        plan = world.plan()
        assert not plan.delete
        assert not plan.annotate
        assert not plan.events
        assert plan.look_again_in is None
        assert world.reconcile() is False
        assert world.writes == writes


TestLifeOfAService = LifeOfAService.TestCase
TestLifeOfAService.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
