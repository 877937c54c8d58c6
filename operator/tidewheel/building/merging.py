"""Strategic merge of a partial pod template into a built pod: the few lists that matter merge by their keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tidewheel.api.manifest import Manifest

#: Merge keys of the lists in a PodTemplateSpec, as Kubernetes' own types declare them; other lists are replaced.
MERGE_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "ports": ("containerPort", "protocol"),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
}
#: Where a merge key may be left out, what it then means.
_KEY_DEFAULTS = {"protocol": "TCP"}
#: Lists without merge keys to which a template adds instead of replacing them.
_ADDED = frozenset({"tolerations"})
#: Lists whose items are replaced as a whole: a volume must not end up with two sources.
_REPLACED_ITEMS = frozenset({"volumes"})


def merged(base: Manifest, patch: Manifest) -> Manifest:
    """`base` with `patch` merged in; neither is changed.

    A null removes a field. `$patch: delete` in a list item removes the item of its key, and `$patch: replace` in an
    object replaces the object, as kubectl's strategic merge patch has it.
    """
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            base_value = old if isinstance(old, dict) and value.get("$patch") != "replace" else {}
            result[key] = merged(base_value, _plain(value))
        elif isinstance(value, list):
            old = result.get(key)
            result[key] = _merged_list(key, old if isinstance(old, list) else [], value)
        else:
            result[key] = value
    return result


def _merged_list(name: str, base: Sequence[Any], patch: Sequence[Any]) -> list[Any]:
    if name in _ADDED:
        return [*base, *(item for item in patch if item not in base)]
    keys = MERGE_KEYS.get(name)
    if keys is None or not all(isinstance(item, dict) for item in patch):
        return list(patch)
    items = {_identity(item, keys): item for item in base}
    for item in patch:
        identity = _identity(item, keys)
        if item.get("$patch") == "delete":
            items.pop(identity, None)
        else:
            keeps = name not in _REPLACED_ITEMS
            items[identity] = merged(items.get(identity, {}) if keeps else {}, _plain(item))
    return list(items.values())


def _identity(item: Manifest, keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(key, _KEY_DEFAULTS.get(key)) for key in keys)


def _plain(value: Manifest) -> Manifest:
    return {key: part for key, part in value.items() if key != "$patch"}
