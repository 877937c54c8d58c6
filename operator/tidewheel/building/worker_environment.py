"""The environment of worker containers: the contract between the operator and what runs in its pods.

| variable | roles | meaning |
|---|---|---|
| `POD_NAME`, `POD_NAMESPACE`, `POD_UID`, `POD_IP` | all | the pod, by the downward API; servers bind `POD_IP` |
| `TIDEWHEEL_SERVICE` | all | name of the PDService |
| `TIDEWHEEL_ROLE` | all | `gateway`, `prefill` or `decode` |
| `TIDEWHEEL_MODEL_NAME` | all | the name clients give as `model` |
| `TIDEWHEEL_HTTP_PORT` | all | port of requests, probes and metrics |
| `TIDEWHEEL_MAX_BODY_BYTES` | all | longest request body |
| `TIDEWHEEL_DRAIN_SECONDS` | all | how long running requests may take after SIGTERM |
| `TIDEWHEEL_KV_MODE` | all | `Whole`, `PerLayer`, or `Blocks` for the baseline |
| `TIDEWHEEL_GROUP` | prefill, decode | name of the group |
| `TIDEWHEEL_MODEL_SOURCE` | prefill, decode | `package:<distribution>` or `path:<directory or file>` |
| `TIDEWHEEL_DTYPE` | prefill, decode | `auto`, `float32`, `bfloat16` or `float16` |
| `TIDEWHEEL_QUANTIZATION` | prefill, decode | `None`, or `Int8` for weights of 8 bits |
| `TIDEWHEEL_DEVICE` | prefill, decode | torch device type, such as `cpu`, `cuda`, `npu` |
| `TIDEWHEEL_DEVICE_MODULE` | prefill, decode | module to import for that device type, such as `torch_npu`; may be empty |
| `TIDEWHEEL_MAX_CONTEXT_TOKENS` | prefill, decode | bound of prompt and answer together |
| `TIDEWHEEL_SLOTS` | prefill, decode | requests at a time |
| `TIDEWHEEL_KV_CACHE_TOKENS` | prefill, decode | size of the KV cache; not set: the worker decides |
| `TIDEWHEEL_BATCH_TOKENS` | prefill, decode | tokens computed in one pass; not set: the worker decides |
| `TIDEWHEEL_FLIP_SLOTS` | prefill, decode | `TIDEWHEEL_SLOTS` in the other role; not set: the pod is made for one role only |
| `TIDEWHEEL_FLIP_KV_CACHE_TOKENS` | prefill, decode | likewise |
| `TIDEWHEEL_FLIP_BATCH_TOKENS` | prefill, decode | likewise |
| `TIDEWHEEL_KV_PORT` | prefill, decode | port of the KV transfer |
| `TIDEWHEEL_RANKS_FILE` | prefill, decode | the group's rank table; may not be there yet |
| `TIDEWHEEL_DEVICE_HEALTH_FILE` | prefill, decode | what the node's detector knows of its devices; not set: there is none |
| `TIDEWHEEL_DEVICES_VARIABLE` | prefill, decode | the variable that names the devices the process may use; not set: all of the file count |
| `TIDEWHEEL_ROUTES_FILE` | gateway | the routes; may not be there yet |
| `TIDEWHEEL_TTFT_DEADLINE_SECONDS` | gateway | longest wait for a prefill slot |
| `TIDEWHEEL_REQUEST_TIMEOUT_SECONDS` | gateway | longest request |
| `TIDEWHEEL_STREAM_IDLE_SECONDS` | gateway | longest silence of a stream |
| `TIDEWHEEL_ON_DECODE_LOSS` | gateway | `Resume`, `Error` or `DefaultText` |
| `TIDEWHEEL_DEFAULT_TEXT` | gateway | ends a stream whose decode is lost, with `DefaultText` |
| `TIDEWHEEL_PREFILL_ORDER` | gateway | `LeastLoaded` or `FillFirst` |
| `TIDEWHEEL_PREFILL_AFFINITY` | gateway | `Prefix` or `None` |
| `TIDEWHEEL_CANDIDATES` | gateway | prefills asked before a request pauses |
| `TIDEWHEEL_MAX_WAITING` | gateway | most requests that wait for a slot |
| `TIDEWHEEL_SHORT_PROMPT_CHARACTERS` | gateway | prompts that decodes may compute when prefills are busy; 0: none |
| `TIDEWHEEL_API_KEYS_FILE` | gateway | accepted keys, one a line; not set: no key is asked for |
| `TIDEWHEEL_PAGE` | gateway | `Enabled` or `Disabled`: the page at `/` |
| `TIDEWHEEL_TERMINATION_LOG` | all | where a process that cannot start leaves reason and message |
| `HOME`, `TMPDIR` | all | the one writable directory of the container |
| `TRACEPARENT` | all | W3C context of whoever applied the PDService, if known; to link to, not to continue |
| `OTEL_*`, others | all | passed through from the operator's settings |

Every number is a decimal string. A variable that a role's template sets wins over all of these.
"""

from __future__ import annotations

from tidewheel.api import meta
from tidewheel.api.accelerators import Accelerator
from tidewheel.api.manifest import Manifest
from tidewheel.api.pdservice import ComputeRole, Model, PDServiceSpec
from tidewheel.planning.flips import roles_match
from tidewheel.planning.intent import PodOrder
from tidewheel.planning.observed import ObservedService
from tidewheel.planning.settings import ServiceDefaults

API_KEYS_PATH = "/etc/tidewheel/api-keys/keys"
SCRATCH_PATH = "/tmp"  # noqa: S108  (an emptyDir of the pod's own)
TERMINATION_LOG = "/dev/termination-log"
#: The gateway bounds what clients send. Behind it any body it may let through must pass, with what it adds,
#: or a change of the gateways' bound would have to replace every group.
LARGEST_FORWARDED_BODY = 67_108_864 + 65_536

_POD_FIELDS = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
    "POD_IP": "status.podIP",
}


def environment(seen: ObservedService, order: PodOrder, defaults: ServiceDefaults) -> list[Manifest]:
    """The `env` of a worker container."""
    spec = order.spec
    values: dict[str, str | int] = {
        **defaults.environment,
        "HOME": SCRATCH_PATH,
        "TMPDIR": SCRATCH_PATH,
        "TIDEWHEEL_SERVICE": seen.name,
        "TIDEWHEEL_ROLE": order.role,
        "TIDEWHEEL_MODEL_NAME": spec.model.name,
        "TIDEWHEEL_HTTP_PORT": meta.HTTP_PORT,
        "TIDEWHEEL_DRAIN_SECONDS": spec.drain_seconds,
        "TIDEWHEEL_TERMINATION_LOG": TERMINATION_LOG,
        "TIDEWHEEL_KV_MODE": spec.kv_transfer.mode,
    }
    if order.role == "gateway":
        values |= _gateway_values(spec)
    else:
        role, other = (spec.prefill, spec.decode) if order.role == "prefill" else (spec.decode, spec.prefill)
        values |= _compute_values(order, role, spec.model, defaults.accelerators[role.accelerator])
        if roles_match(spec):
            values |= _sizes(other, "TIDEWHEEL_FLIP_")
    if seen.traceparent:
        values["TRACEPARENT"] = seen.traceparent
    fields = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in _POD_FIELDS.items()
    ]
    return fields + [{"name": name, "value": str(value)} for name, value in values.items()]


def model_source(model: Model) -> str:
    """Where a worker finds the model."""
    source = model.source
    if source.package is not None:
        return f"package:{source.package.name}"
    if source.volume is not None and source.volume.path:
        return f"path:{meta.MODEL_PATH}/{source.volume.path}"
    return f"path:{meta.MODEL_PATH}"


def _gateway_values(spec: PDServiceSpec) -> dict[str, str | int]:
    gateway = spec.gateway
    values: dict[str, str | int] = {
        "TIDEWHEEL_MAX_BODY_BYTES": gateway.max_body_bytes,
        "TIDEWHEEL_ROUTES_FILE": meta.ROUTES_PATH,
        "TIDEWHEEL_TTFT_DEADLINE_SECONDS": gateway.ttft_deadline_seconds,
        "TIDEWHEEL_REQUEST_TIMEOUT_SECONDS": gateway.request_timeout_seconds,
        "TIDEWHEEL_PAGE": gateway.page,
        "TIDEWHEEL_STREAM_IDLE_SECONDS": gateway.stream_idle_seconds,
        "TIDEWHEEL_ON_DECODE_LOSS": gateway.on_decode_loss,
        # kubelets read $(NAME) as a variable's value, and $$ as a dollar sign
        "TIDEWHEEL_DEFAULT_TEXT": gateway.default_text.replace("$", "$$"),
        "TIDEWHEEL_PREFILL_ORDER": gateway.forwarding.order,
        "TIDEWHEEL_PREFILL_AFFINITY": gateway.forwarding.affinity,
        "TIDEWHEEL_CANDIDATES": gateway.forwarding.candidates,
        "TIDEWHEEL_MAX_WAITING": gateway.forwarding.max_waiting,
        "TIDEWHEEL_SHORT_PROMPT_CHARACTERS": gateway.forwarding.short_prompt_characters,
    }
    if gateway.api_keys_secret_ref is not None:
        values["TIDEWHEEL_API_KEYS_FILE"] = API_KEYS_PATH
    return values


def _compute_values(
    order: PodOrder, role: ComputeRole, model: Model, accelerator: Accelerator
) -> dict[str, str | int]:
    values: dict[str, str | int] = {
        "TIDEWHEEL_MAX_BODY_BYTES": LARGEST_FORWARDED_BODY,
        "TIDEWHEEL_GROUP": order.group,
        "TIDEWHEEL_MODEL_SOURCE": model_source(model),
        "TIDEWHEEL_DTYPE": model.dtype,
        "TIDEWHEEL_QUANTIZATION": model.quantization,
        "TIDEWHEEL_DEVICE": accelerator.torch_device,
        "TIDEWHEEL_DEVICE_MODULE": accelerator.torch_module or "",
        "TIDEWHEEL_MAX_CONTEXT_TOKENS": model.max_context_tokens,
        "TIDEWHEEL_KV_PORT": meta.KV_PORT,
        "TIDEWHEEL_RANKS_FILE": meta.RANKS_PATH,
        **_sizes(role, "TIDEWHEEL_"),
    }
    if accelerator.health_file is not None:
        file = accelerator.health_file.rpartition("/")[2]
        values["TIDEWHEEL_DEVICE_HEALTH_FILE"] = f"{meta.DEVICE_HEALTH_DIRECTORY}/{file}"
        if accelerator.visible_devices_variable is not None:
            values["TIDEWHEEL_DEVICES_VARIABLE"] = accelerator.visible_devices_variable
    return values


def _sizes(role: ComputeRole, prefix: str) -> dict[str, str | int]:
    """How much one pod of a role takes on."""
    values: dict[str, str | int] = {f"{prefix}SLOTS": role.slots}
    if role.kv_cache_tokens is not None:
        values[f"{prefix}KV_CACHE_TOKENS"] = role.kv_cache_tokens
    if role.batch_tokens is not None:
        values[f"{prefix}BATCH_TOKENS"] = role.batch_tokens
    return values
