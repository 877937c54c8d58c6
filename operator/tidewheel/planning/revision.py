"""Revisions: short digests of the part of a spec that shapes pods, one for groups and one for gateways."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tidewheel.api.accelerators import AcceleratorTable
from tidewheel.api.pdservice import ComputeRole, PDServiceSpec

#: Five hexadecimal digits: among a service's few live revisions a collision is one in a million.
DIGITS = 5


def group_revision(spec: PDServiceSpec, *, image: str, accelerators: AcceleratorTable) -> str:
    """The revision of prefill and decode pods.

    It changes with everything that would make a pod another pod: the model, the image in effect, and each
    role's slots, devices, accelerator row, resources and template. It stays when only numbers of pods,
    suspension, rollout bounds, drain time, gateways or metadata change.
    """
    return _digest(
        {
            "model": spec.model.to_wire(),
            **_image(spec, image),
            "prefill": _shape(spec.prefill, accelerators),
            "decode": _shape(spec.decode, accelerators),
        }
    )


def gateway_revision(spec: PDServiceSpec, *, image: str) -> str:
    """The revision of gateway pods: the model's name, the image in effect and what a gateway is told."""
    shape = spec.gateway.to_wire()
    for field in ("replicas", "service"):
        shape.pop(field, None)
    return _digest({"model": spec.model.name, **_image(spec, image), "gateway": shape})


def _image(spec: PDServiceSpec, image: str) -> dict[str, Any]:
    return {
        "image": spec.image or image,
        "pull": [spec.image_pull_policy, *spec.image_pull_secrets],
    }


def _shape(role: ComputeRole, accelerators: AcceleratorTable) -> dict[str, Any]:
    shape = role.to_wire()
    del shape["replicas"]
    return shape | {"row": accelerators[role.accelerator].to_wire()}


def _digest(shape: dict[str, Any]) -> str:
    canonical = json.dumps(shape, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGITS]
