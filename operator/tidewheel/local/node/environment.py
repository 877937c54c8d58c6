"""What a container's process is given: environment, command and working directory, with mount paths made real."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING
from pathlib import Path
from typing import Protocol

from tidewheel.api.manifest import Manifest
from tidewheel.local.node.paths import PodPaths
from tidewheel.local.node.process import Command
from tidewheel.local.nodes import ImageRow
from tidewheel.local.quantities import parse_quantity

_DEFAULT_TERMINATION_LOG = "/dev/termination-log"
_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class Unresolvable(Exception):
    """The container's configuration refers to something that is not there; `reason` is for its waiting state."""

    def __init__(self, message: str, *, reason: str = "CreateContainerConfigError") -> None:
        super().__init__(message)
        self.reason = reason


class Sources(Protocol):
    """Where ConfigMaps and Secrets of the pod's namespace come from."""

    def config_map(self, name: str) -> Manifest | None:
        """The ConfigMap, None if it is not there."""
        ...

    def secret(self, name: str) -> Manifest | None:
        """The Secret, None if it is not there."""
        ...

    def services(self) -> Iterable[Manifest]:
        """The namespace's Services, if the pod wants to be told of them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlace:
    """Where the pod runs: what the downward API tells beside the pod itself."""

    node: str
    host_ip: str
    pod_ip: str
    #: The node's allocatable resources, which stand in for limits that are not set.
    allocatable: Mapping[str, str]


def container_command(
    pod: Manifest,
    container: Manifest,
    *,
    place: PodPlace,
    paths: PodPaths,
    image: ImageRow,
    sources: Sources,
    volumes: Mapping[str, Path],
    kubeconfig: Path | None,
) -> Command:
    """The process that stands for a container.

    There is no mount namespace. So wherever a mount path (or the termination message path) occurs in the
    command, the arguments, the working directory or a value of the environment that the pod states, the real
    path replaces it: a container that takes its paths from its command line and environment works unchanged.
    What the agent itself adds is real already, and may lie below a path that the pod mounts, such as /tmp.

    Raises:
        Unresolvable: a reference leads nowhere, or there is no command.
    """
    env = {
        "PATH": f"{image.python.parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(paths.home),
        "TMPDIR": str(paths.temporary),
        "HOSTNAME": pod["metadata"]["name"],
        # By this mark a restarted agent finds processes that outlived the one before.
        "TIDEWHEEL_POD_UID": pod["metadata"]["uid"],
        **image.env,
    }
    if kubeconfig is not None:
        env["KUBECONFIG"] = str(kubeconfig)
    if pod["spec"].get("enableServiceLinks", True):
        env |= service_links(sources.services())
    declared = declared_environment(pod, container, place=place, sources=sources)
    to_real = mount_substitution(container, volumes=volumes, paths=paths, env=env | declared)
    env |= {name: to_real(value) for name, value in declared.items()}
    env["TIDEWHEEL_TERMINATION_LOG"] = str(paths.termination_log(container["name"]))
    command = container.get("command") or list(image.entrypoint)
    if not command:
        raise Unresolvable(
            f'container "{container["name"]}" has no command: images are not pulled here, so the pod must say '
            "what to run, or the nodes file must give its image an entrypoint",
            reason="CreateContainerError",
        )
    argv = [expand(to_real(word), env) for word in (*command, *(container.get("args") or []))]
    if argv[0] in ("python", "python3"):
        argv[0] = str(image.python)
    directory = Path(to_real(container["workingDir"])) if container.get("workingDir") else paths.home
    if not directory.is_dir():
        raise Unresolvable(
            f"workingDir {directory} is no directory of this machine", reason="CreateContainerError"
        )
    return Command(
        argv=tuple(argv),
        env=env,
        directory=directory,
    )


def declared_environment(
    pod: Manifest, container: Manifest, *, place: PodPlace, sources: Sources
) -> dict[str, str]:
    """The container's `envFrom` and `env`, resolved in order.

    Raises:
        Unresolvable: a ConfigMap, Secret or key that is not optional is not there.
    """
    env: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        env |= {source.get("prefix", "") + key: value for key, value in _env_from(source, sources).items()}
    for variable in container.get("env") or []:
        name = variable["name"]
        if (source := variable.get("valueFrom")) is not None:
            value = _value_from(source, pod, container, place, sources)
            if value is not None:
                env[name] = value
        else:
            env[name] = expand(variable.get("value", ""), env)
    return env


def service_links(services: Iterable[Manifest]) -> dict[str, str]:
    """`NAME_SERVICE_HOST` and `NAME_SERVICE_PORT` of each Service, as the kubelet gives them: there is no DNS here."""
    env: dict[str, str] = {}
    for service in services:
        address, ports = service["spec"].get("clusterIP"), service["spec"].get("ports")
        if not ports or address in (None, "", "None"):
            continue
        name = service["metadata"]["name"].upper().replace("-", "_")
        env[f"{name}_SERVICE_HOST"] = address
        env[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
        for port in ports:
            if port.get("name"):
                env[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
    return env


def expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` becomes the variable's value, `$$` a dollar; a reference to nothing stays as it is."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def mount_substitution(
    container: Manifest, *, volumes: Mapping[str, Path], paths: PodPaths, env: Mapping[str, str]
) -> Callable[[str], str]:
    """A function that puts real paths in the place of the container's mount paths, wherever they occur whole."""
    real: dict[str, str] = {
        container.get("terminationMessagePath") or _DEFAULT_TERMINATION_LOG: str(
            paths.termination_log(container["name"])
        )
    }
    for mount in container.get("volumeMounts") or []:
        place = volumes[mount["name"]] / (mount.get("subPath") or expand(mount.get("subPathExpr", ""), env))
        real[mount["mountPath"].rstrip("/") or "/"] = str(place)
    choices = "|".join(re.escape(path) for path in sorted(real, key=len, reverse=True) if path != "/")
    # A path is whole when it neither continues another path nor goes on as another name.
    pattern = re.compile(rf"(?<![\w./-])({choices})(?![\w.-])")
    return lambda text: pattern.sub(lambda match: real[match[1]], text)


def field_of(pod: Manifest, path: str, place: PodPlace) -> str:
    """A field of the downward API.

    Raises:
        Unresolvable: it is none of those that the downward API has.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    if (subscript := _SUBSCRIPT.fullmatch(path)) is not None:
        return str((metadata.get(subscript[1]) or {}).get(subscript[2], ""))
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(metadata[path.removeprefix("metadata.")])
        case "metadata.labels" | "metadata.annotations":
            pairs = metadata.get(path.removeprefix("metadata.")) or {}
            return "".join(f'{key}="{_escaped(value)}"\n' for key, value in sorted(pairs.items()))
        case "spec.nodeName":
            return place.node
        case "spec.serviceAccountName":
            return str(spec.get("serviceAccountName", ""))
        case "status.podIP" | "status.podIPs":
            return place.pod_ip
        case "status.hostIP" | "status.hostIPs":
            return place.host_ip
        case _:
            raise Unresolvable(f"fieldRef {path!r} is not a field of the downward API")


def resource_of(
    pod: Manifest, reference: Manifest, place: PodPlace, *, container: Manifest | None = None
) -> str:
    """A `resourceFieldRef`: a limit or request in units of its divisor, rounded up.

    A limit that is not set is the node's allocatable amount; a request that is not set is 0.

    Raises:
        Unresolvable: the container or the resource is not one that can be asked for.
    """
    if container is None:
        wanted = reference.get("containerName")
        container = next((c for c in pod["spec"]["containers"] if c["name"] == wanted), None)
        if container is None:
            raise Unresolvable(f"resourceFieldRef names container {wanted!r}, which the pod does not have")
    kind, _, resource = reference["resource"].partition(".")
    if kind not in ("limits", "requests") or not resource:
        raise Unresolvable(f"resourceFieldRef {reference['resource']!r} is neither limits.* nor requests.*")
    stated = (container.get("resources") or {}).get(kind) or {}
    default = place.allocatable.get(resource, "0") if kind == "limits" else "0"
    divisor = parse_quantity(str(reference.get("divisor") or "1")) or parse_quantity("1")
    amount = parse_quantity(str(stated.get(resource, default))) / divisor
    return str(int(amount.to_integral_value(ROUND_CEILING)))


def _env_from(source: Manifest, sources: Sources) -> dict[str, str]:
    if (reference := source.get("configMapRef")) is not None:
        found, kind = sources.config_map(reference["name"]), "configmap"
    else:
        reference = source["secretRef"]
        found, kind = sources.secret(reference["name"]), "secret"
    if found is None:
        if reference.get("optional"):
            return {}
        raise Unresolvable(f'{kind} "{reference["name"]}" not found')
    return {key: value.decode(errors="replace") for key, value in entries_of(found).items()}


def _value_from(
    source: Manifest, pod: Manifest, container: Manifest, place: PodPlace, sources: Sources
) -> str | None:
    if (field := source.get("fieldRef")) is not None:
        return field_of(pod, field["fieldPath"], place)
    if (resource := source.get("resourceFieldRef")) is not None:
        named = container if not resource.get("containerName") else None
        return resource_of(pod, resource, place, container=named)
    if (reference := source.get("configMapKeyRef")) is not None:
        return _key(reference, sources.config_map(reference["name"]), "ConfigMap")
    if (reference := source.get("secretKeyRef")) is not None:
        return _key(reference, sources.secret(reference["name"]), "Secret")
    raise Unresolvable(f"valueFrom {next(iter(source), '')!r} is not supported by this agent")


def _key(reference: Manifest, found: Manifest | None, kind: str) -> str | None:
    if found is None:
        if reference.get("optional"):
            return None
        raise Unresolvable(f'{kind.lower()} "{reference["name"]}" not found')
    entries = entries_of(found)
    if reference["key"] not in entries:
        if reference.get("optional"):
            return None
        namespace = found["metadata"].get("namespace", "")
        raise Unresolvable(f"couldn't find key {reference['key']} in {kind} {namespace}/{reference['name']}")
    return entries[reference["key"]].decode(errors="replace")


def entries_of(found: Manifest) -> dict[str, bytes]:
    """The keys of a ConfigMap or Secret as bytes."""
    if found.get("kind") == "Secret":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    texts = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return texts | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def referenced(pod: Manifest) -> tuple[set[str], set[str]]:
    """The names of the ConfigMaps and Secrets that a pod's environment and volumes name."""
    config_maps: set[str] = set()
    secrets: set[str] = set()
    spec = pod["spec"]
    for container in (*(spec.get("initContainers") or []), *spec["containers"]):
        for source in container.get("envFrom") or []:
            config_maps |= _names(source.get("configMapRef"))
            secrets |= _names(source.get("secretRef"))
        for variable in container.get("env") or []:
            source = variable.get("valueFrom") or {}
            config_maps |= _names(source.get("configMapKeyRef"))
            secrets |= _names(source.get("secretKeyRef"))
    for volume in _flat(spec.get("volumes") or []):
        config_maps |= _names(volume.get("configMap"))
        secret = volume.get("secret") or {}
        secrets |= {secret[key] for key in ("secretName", "name") if key in secret}
    return config_maps, secrets


def _flat(volumes: Iterable[Manifest]) -> Iterable[Manifest]:
    for volume in volumes:
        yield volume
        yield from (volume.get("projected") or {}).get("sources") or []


def _names(reference: Manifest | None) -> set[str]:
    return {reference["name"]} if reference else set()
