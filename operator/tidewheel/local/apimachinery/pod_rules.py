"""What the API server refuses in pods and pod templates, and what it lets an update of a pod change."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery import names
from tidewheel.local.apimachinery.fields import (
    FieldError,
    duplicate,
    forbidden,
    invalid,
    not_found,
    not_supported,
    required,
)
from tidewheel.local.apimachinery.metadata_rules import validate_labels
from tidewheel.local.apimachinery.quantities import quantity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tidewheel.local.apimachinery.fields import Manifest

_PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")
_RESTART_POLICIES: Final = ("Always", "Never", "OnFailure")
_DNS_POLICIES: Final = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_PROTOCOLS: Final = ("SCTP", "TCP", "UDP")
_EFFECTS: Final = ("NoExecute", "NoSchedule", "PreferNoSchedule")
_OPERATORS: Final = ("Equal", "Exists", "Gt", "Lt")
_TERMINATION_POLICIES: Final = ("FallbackToLogsOnError", "File")
_UNSATISFIABLE: Final = ("DoNotSchedule", "ScheduleAnyway")
_HANDLERS: Final = ("exec", "httpGet", "tcpSocket", "grpc")
_NATIVE_RESOURCES: Final = frozenset({"cpu", "memory", "ephemeral-storage", "storage"})
_VALUE_SOURCES: Final = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")
_MOST_SECONDS: Final = 2**31 - 1
_MAY_CHANGE: Final = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def validate_pod_spec(spec: Manifest, path: str = "spec") -> list[FieldError]:
    """Check the spec of a pod or of a pod template."""
    errors: list[FieldError] = []
    volumes = spec.get("volumes") or ()
    errors += _volumes(volumes, f"{path}.volumes")
    known = {volume.get("name") for volume in volumes}
    containers, initial = spec.get("containers") or (), spec.get("initContainers") or ()
    if not containers:
        errors.append(required(f"{path}.containers"))
    taken: set[str] = set()
    for index, container in enumerate(containers):
        errors += _container(container, f"{path}.containers[{index}]", known, taken)
    for index, container in enumerate(initial):
        where = f"{path}.initContainers[{index}]"
        errors += _container(container, where, known, taken)
        if container.get("restartPolicy") != "Always":
            errors += [
                forbidden(
                    f"{where}.{name}", "may not be set for init containers without restartPolicy=Always"
                )
                for name in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
                if container.get(name) is not None
            ]
    errors += _choice(spec.get("restartPolicy"), _RESTART_POLICIES, f"{path}.restartPolicy")
    errors += _choice(spec.get("dnsPolicy"), _DNS_POLICIES, f"{path}.dnsPolicy")
    errors += validate_labels(spec.get("nodeSelector") or {}, f"{path}.nodeSelector")
    if spec.get("serviceAccountName"):
        name = spec["serviceAccountName"]
        errors += [
            invalid(f"{path}.serviceAccountName", name, text) for text in names.subdomain_complaints(name)
        ]
    if spec.get("nodeName"):
        name = spec["nodeName"]
        errors += [invalid(f"{path}.nodeName", name, text) for text in names.subdomain_complaints(name)]
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= _MOST_SECONDS:
        text = f"must be between 1 and {_MOST_SECONDS}, inclusive"
        errors.append(invalid(f"{path}.activeDeadlineSeconds", deadline, text))
    for name in ("hostname", "subdomain"):
        if spec.get(name):
            errors += [
                invalid(f"{path}.{name}", spec[name], text) for text in names.label_complaints(spec[name])
            ]
    grace = spec.get("terminationGracePeriodSeconds")
    if grace is not None and grace < 0:
        errors.append(
            invalid(f"{path}.terminationGracePeriodSeconds", grace, "must be greater than or equal to 0")
        )
    errors += validate_tolerations(spec.get("tolerations") or (), f"{path}.tolerations")
    errors += _affinity(spec.get("affinity") or {}, f"{path}.affinity")
    errors += _spread(spec.get("topologySpreadConstraints") or (), f"{path}.topologySpreadConstraints")
    return errors


def validate_pod_update(new: Manifest, old: Manifest) -> list[FieldError]:
    """Check that an update leaves alone what may not change in a pod's spec."""
    errors: list[FieldError] = []
    after, before = new["spec"], old["spec"]
    if after == before:
        return errors
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(after.get(kind) or ()):
            if not container.get("image"):
                errors.append(required(f"spec.{kind}[{index}].image"))
    deadline, former = after.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    if former is not None and (deadline is None or deadline > former):
        text = f"must be less than or equal to previous value {former}"
        errors.append(invalid("spec.activeDeadlineSeconds", deadline, text))
    kept = before.get("tolerations") or []
    added = after.get("tolerations") or []
    tolerations_grow = all(_still_tolerated(each, added) for each in kept)
    if errors:
        return errors
    masked = deepcopy(after)
    for kind in ("containers", "initContainers"):
        for mine, theirs in zip(masked.get(kind) or (), before.get(kind) or (), strict=False):
            if "image" in theirs:
                mine["image"] = theirs["image"]
    allowed = ["activeDeadlineSeconds", *(["tolerations"] if tolerations_grow else [])]
    if before.get("terminationGracePeriodSeconds", 0) < 0 and after.get("terminationGracePeriodSeconds") == 1:
        allowed.append("terminationGracePeriodSeconds")
    gates = list(before.get("schedulingGates") or ())
    if all(gate in gates for gate in after.get("schedulingGates") or ()):
        allowed.append("schedulingGates")
    for name in allowed:
        masked.pop(name, None)
    for name in sorted(masked.keys() | {key for key in before if key not in allowed}):
        if masked.get(name) != before.get(name):
            return [forbidden("spec", f"{_MAY_CHANGE}\n  changed: {name}")]
    return errors


def _still_tolerated(toleration: Manifest, tolerations: list[Manifest]) -> bool:
    """Whether a toleration is still there; its seconds may have changed."""
    bare = {key: value for key, value in toleration.items() if key != "tolerationSeconds"}
    return any(
        {key: value for key, value in each.items() if key != "tolerationSeconds"} == bare
        for each in tolerations
    )


def _choice(value: Any, choices: Iterable[str], path: str) -> Iterator[FieldError]:
    if not value:
        yield required(path)
    elif value not in choices:
        yield not_supported(path, value, choices)


def _container(container: Manifest, path: str, volumes: set[Any], taken: set[str]) -> Iterator[FieldError]:
    name = container.get("name")
    if not name:
        yield required(f"{path}.name")
    else:
        for text in names.label_complaints(name):
            yield invalid(f"{path}.name", name, text)
        if name in taken:
            yield duplicate(f"{path}.name", name)
        taken.add(name)
    image = container.get("image", "")
    if not image:
        yield required(f"{path}.image")
    elif image != image.strip():
        yield invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
    yield from _ports(container.get("ports") or (), f"{path}.ports")
    yield from _environment(container.get("env") or (), f"{path}.env")
    yield from _mounts(container.get("volumeMounts") or (), f"{path}.volumeMounts", volumes)
    yield from _choice(container.get("imagePullPolicy"), _PULL_POLICIES, f"{path}.imagePullPolicy")
    yield from _choice(
        container.get("terminationMessagePolicy"), _TERMINATION_POLICIES, f"{path}.terminationMessagePolicy"
    )
    yield from _resources(container.get("resources") or {}, f"{path}.resources")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(probe) is not None:
            yield from _probe(container[probe], f"{path}.{probe}", one_success=probe != "readinessProbe")


def port_errors(port: Any, path: str) -> Iterator[FieldError]:
    """Check a port number."""
    if not isinstance(port, int) or not 1 <= port <= 65535:
        yield invalid(path, port, "must be between 1 and 65535, inclusive")


def _ports(ports: Any, path: str) -> Iterator[FieldError]:
    taken: set[str] = set()
    for index, port in enumerate(ports):
        where = f"{path}[{index}]"
        name = port.get("name")
        if name:
            for text in names.port_name_complaints(name):
                yield invalid(f"{where}.name", name, text)
            if name in taken:
                yield duplicate(f"{where}.name", name)
            taken.add(name)
        if not port.get("containerPort"):
            yield required(f"{where}.containerPort")
        else:
            yield from port_errors(port["containerPort"], f"{where}.containerPort")
        if port.get("hostPort"):
            yield from port_errors(port["hostPort"], f"{where}.hostPort")
        yield from _choice(port.get("protocol"), _PROTOCOLS, f"{where}.protocol")


def _environment(variables: Any, path: str) -> Iterator[FieldError]:
    for index, variable in enumerate(variables):
        where = f"{path}[{index}]"
        name = variable.get("name")
        if not name:
            yield required(f"{where}.name")
        else:
            for text in names.env_name_complaints(name):
                yield invalid(f"{where}.name", name, text)
        source = variable.get("valueFrom")
        if source is None:
            continue
        given = [each for each in _VALUE_SOURCES if source.get(each) is not None]
        if not given:
            text = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef`, or `fileKeyRef`"
            yield invalid(f"{where}.valueFrom", "", text)
        elif variable.get("value"):
            yield invalid(f"{where}.valueFrom", "", "may not be specified when `value` is not empty")
        elif len(given) > 1:
            yield invalid(f"{where}.valueFrom", "", "may not have more than one field specified at a time")


def _mounts(mounts: Any, path: str, volumes: set[Any]) -> Iterator[FieldError]:
    taken: set[str] = set()
    for index, mount in enumerate(mounts):
        where = f"{path}[{index}]"
        if not mount.get("name"):
            yield required(f"{where}.name")
        elif mount["name"] not in volumes:
            yield not_found(f"{where}.name", mount["name"])
        target = mount.get("mountPath")
        if not target:
            yield required(f"{where}.mountPath")
        elif target in taken:
            yield invalid(f"{where}.mountPath", target, "must be unique")
        else:
            taken.add(target)


def _resources(resources: Manifest, path: str) -> Iterator[FieldError]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for kind, amounts in (("limits", limits), ("requests", requests)):
        for name, text in amounts.items():
            where = f"{path}.{kind}[{name}]" if "/" in name or "." in name else f"{path}.{kind}.{name}"
            for complaint in names.qualified_name_complaints(name):
                yield invalid(f"{path}.{kind}[{name}]", name, complaint)
            if "/" not in name and name not in _NATIVE_RESOURCES and not name.startswith("hugepages-"):
                yield invalid(
                    f"{path}.{kind}[{name}]", name, "must be a standard resource type or fully qualified"
                )
            amount = quantity(text)
            if amount < 0:
                yield invalid(where, text, "must be greater than or equal to 0")
            if "/" in name and amount != amount.to_integral_value():
                yield invalid(where, text, "must be an integer")
    for name, text in requests.items():
        limit = limits.get(name)
        is_extended = "/" in name
        if limit is None:
            if is_extended:
                yield required(f"{path}.limits", "Limit must be set for non overcommitable resources")
        elif is_extended and quantity(limit) != quantity(text):
            yield invalid(f"{path}.requests", text, f"must be equal to {name} limit of {limit}")
        elif quantity(text) > quantity(limit):
            yield invalid(f"{path}.requests", text, f"must be less than or equal to {name} limit of {limit}")


def _probe(probe: Manifest, path: str, *, one_success: bool) -> Iterator[FieldError]:
    given = [name for name in _HANDLERS if probe.get(name) is not None]
    if not given:
        yield required(path, "must specify a handler type")
    for name in given[1:]:
        yield forbidden(f"{path}.{name}", "may not specify more than 1 handler type")
    for name in (
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ):
        if probe.get(name, 0) < 0:
            yield invalid(f"{path}.{name}", probe[name], "must be greater than or equal to 0")
    if one_success and probe.get("successThreshold", 1) != 1:
        yield invalid(f"{path}.successThreshold", probe["successThreshold"], "must be 1")
    for name in ("httpGet", "tcpSocket", "grpc"):
        port = (probe.get(name) or {}).get("port")
        if isinstance(port, int):
            yield from port_errors(port, f"{path}.{name}.port")
        elif isinstance(port, str):
            for text in names.port_name_complaints(port):
                yield invalid(f"{path}.{name}.port", port, text)


def _volumes(volumes: Any, path: str) -> Iterator[FieldError]:
    taken: set[str] = set()
    for index, volume in enumerate(volumes):
        where = f"{path}[{index}]"
        name = volume.get("name")
        if not name:
            yield required(f"{where}.name")
        else:
            for text in names.label_complaints(name):
                yield invalid(f"{where}.name", name, text)
            if name in taken:
                yield duplicate(f"{where}.name", name)
            taken.add(name)
        sources = [key for key, value in volume.items() if key != "name" and value is not None]
        if not sources:
            yield required(where, "must specify a volume type")
        for source in sources[1:]:
            yield forbidden(f"{where}.{source}", "may not specify more than 1 volume type")
        for source, field in (
            ("secret", "secretName"),
            ("configMap", "name"),
            ("persistentVolumeClaim", "claimName"),
        ):
            if volume.get(source) is not None and not volume[source].get(field):
                yield required(f"{where}.{source}.{field}")
        if volume.get("hostPath") is not None and not volume["hostPath"].get("path"):
            yield required(f"{where}.hostPath.path")


def validate_tolerations(tolerations: Any, path: str) -> Iterator[FieldError]:
    """Check tolerations."""
    for index, toleration in enumerate(tolerations):
        where = f"{path}[{index}]"
        key, operator, effect = (toleration.get(name, "") for name in ("key", "operator", "effect"))
        if key:
            for text in names.qualified_name_complaints(key):
                yield invalid(f"{where}.key", key, text)
        elif operator != "Exists":
            text = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
            yield invalid(f"{where}.operator", operator, text)
        if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
            text = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            yield invalid(f"{where}.effect", effect, text)
        if operator == "Exists" and toleration.get("value"):
            yield invalid(
                f"{where}.operator", toleration["value"], "value must be empty when `operator` is 'Exists'"
            )
        if operator and operator not in _OPERATORS:
            yield not_supported(f"{where}.operator", operator, ("Equal", "Exists"))
        if effect and effect not in _EFFECTS:
            yield not_supported(f"{where}.effect", effect, _EFFECTS)


def _affinity(affinity: Manifest, path: str) -> Iterator[FieldError]:
    node = affinity.get("nodeAffinity") or {}
    needed = node.get("requiredDuringSchedulingIgnoredDuringExecution")
    if needed is not None and not needed.get("nodeSelectorTerms"):
        where = f"{path}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
        yield required(where, "must have at least one node selector term")
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind) or {}
        strict, soft = (
            "requiredDuringSchedulingIgnoredDuringExecution",
            "preferredDuringSchedulingIgnoredDuringExecution",
        )
        terms = [
            (f"{path}.{kind}.{strict}[{index}]", term) for index, term in enumerate(rules.get(strict) or ())
        ]
        for index, weighted in enumerate(rules.get(soft) or ()):
            where = f"{path}.{kind}.{soft}[{index}]"
            if not 1 <= weighted.get("weight", 0) <= 100:
                yield invalid(f"{where}.weight", weighted.get("weight", 0), "must be in the range 1-100")
            terms.append((f"{where}.podAffinityTerm", weighted.get("podAffinityTerm") or {}))
        for where, term in terms:
            if not term.get("topologyKey"):
                yield required(f"{where}.topologyKey", "can not be empty")


def _spread(constraints: Any, path: str) -> Iterator[FieldError]:
    for index, constraint in enumerate(constraints):
        where = f"{path}[{index}]"
        if constraint.get("maxSkew", 0) <= 0:
            yield invalid(f"{where}.maxSkew", constraint.get("maxSkew", 0), "must be greater than zero")
        if not constraint.get("topologyKey"):
            yield required(f"{where}.topologyKey", "can not be empty")
        yield from _choice(constraint.get("whenUnsatisfiable"), _UNSATISFIABLE, f"{where}.whenUnsatisfiable")
