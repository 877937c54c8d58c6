"""PDService: an OpenAI-compatible LLM endpoint whose prefill and decode run on separate pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from tidewheel.api.allocation import Allocation, AllocationStatus
from tidewheel.api.model import (
    ApiModel,
    CelRule,
    CustomResource,
    Name,
    PrinterColumn,
    Quantity,
    ScaleSubresource,
)
from tidewheel.api.scaling import Scaling, ScalingStatus
from tidewheel.api.scenarios import MOST_SCENARIOS, Disaggregation, ModelName, Scenario, ServiceLevel
from tidewheel.api.status import Condition, Decision, PodCount

#: Child names append a revision, a role and two ordinals, and must stay host names of at most 63 characters.
LONGEST_NAME = 36

#: Pods of one role in a group.
MOST_PODS = 64

#: CEL: whether the planner chooses for some groups, and whether no groups at all have prefill pods.
_SOME_AUTO = (
    "self.disaggregation == 'Auto' || (has(self.scenarios) && self.scenarios.exists(s, has(s.groups) && "
    "has(s.groups.disaggregation) && s.groups.disaggregation == 'Auto'))"
)
_ALL_NEVER = (
    "self.disaggregation == 'Never' && (!has(self.scenarios) || self.scenarios.all(s, !has(s.groups) || "
    "!has(s.groups.disaggregation) || s.groups.disaggregation == 'Never'))"
)

#: What workers take where batchTokens is left out.
DEFAULT_BATCH_TOKENS = {"prefill": 2048, "decode": 256}


class PackageSource(ApiModel):
    """A model that an installed Python distribution carries."""

    name: str = Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$",
        description="name is the distribution's name; it holds one GGUF file or one safetensors directory.",
    )


class VolumeSource(ApiModel):
    """A model on a persistent volume."""

    claim_name: str = Field(
        min_length=1,
        max_length=253,
        description="claimName is a PersistentVolumeClaim in the same namespace.",
    )
    path: str = Field(
        "",
        max_length=512,
        pattern=r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$",
        description="path is the model's directory or GGUF file on the volume; empty means its root.",
    )

    cel_rules = (
        CelRule(
            rule="!self.path.matches('(^|/)[.][.](/|$)')",
            message="path must stay on the volume; remove the .. segments",
            field_path=".path",
        ),
    )


class SecretKey(ApiModel):
    """One key of a Secret in the same namespace."""

    name: str = Field(min_length=1, max_length=253, description="name is the Secret's name.")
    key: str = Field(min_length=1, max_length=253, description="key is the key whose value is used.")


class HuggingFaceSource(ApiModel):
    """A model that an init container downloads from the Hugging Face hub."""

    id: str = Field(
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="id is the repository, such as HuggingFaceTB/SmolLM2-135M-Instruct.",
    )
    revision: str = Field(
        "main",
        min_length=1,
        max_length=200,
        description="revision is a branch, a tag or a commit; a commit is repeatable.",
    )
    token_secret_ref: SecretKey | None = Field(
        None, description="tokenSecretRef holds the access token of a gated model."
    )


class ModelSource(ApiModel):
    """Where the weights, the tokenizer and the chat template come from: exactly one of these."""

    package: PackageSource | None = Field(
        None, description="package is a model in an installed distribution."
    )
    volume: VolumeSource | None = Field(None, description="volume is a model on a persistent volume.")
    hugging_face: HuggingFaceSource | None = Field(None, description="huggingFace is a model on the hub.")

    cel_rules = (
        CelRule(
            # CEL reserves the word package; Kubernetes escapes fields named like it.
            rule="[has(self.__package__), has(self.volume), has(self.huggingFace)].filter(set, set).size() == 1",
            message="give exactly one of package, volume and huggingFace",
        ),
    )


class Model(ApiModel):
    """What is served, and how it is held in memory."""

    name: ModelName = Field(description="name is what clients give as `model`.")
    source: ModelSource = Field(description="source is where the model comes from.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="dtype is the weights' and the KV cache's type; auto takes what suits the device."
    )
    quantization: Literal["None", "Int8"] = Field(
        "None",
        description=(
            "quantization holds the weights in dtype (None), or as 8-bit integers in blocks of 32 with a scale each "
            "(Int8), whatever the files hold: a half to a quarter of the memory, and faster. The KV cache keeps dtype."
        ),
    )
    max_context_tokens: int = Field(
        2048,
        ge=128,
        le=1_048_576,
        description="maxContextTokens bounds prompt and answer together; the model may allow less.",
    )


class Resources(ApiModel):
    """Compute resources, as in a container."""

    requests: Mapping[str, Quantity] = Field(
        {}, max_length=16, description="requests are what the scheduler reserves."
    )
    limits: Mapping[str, Quantity] = Field(
        {}, max_length=16, description="limits are what the container may not pass."
    )


class PodRole(ApiModel):
    """What every role's pods have in common."""

    resources: Resources = Field(
        Resources(), description="resources are the worker container's, beside its accelerator devices."
    )
    template: dict[str, Any] | None = Field(
        None,
        description=(
            "template is a partial PodTemplateSpec merged into the pods as a strategic merge patch; a container "
            "named `worker` changes the built-in one. With another image it brings another engine."
        ),
    )


class ComputeRole(PodRole):
    """Prefill or decode pods of each group."""

    replicas: int = Field(
        1, ge=1, le=MOST_PODS, description="replicas is the number of pods of this role in each group."
    )
    slots: int = Field(
        4,
        ge=1,
        le=1024,
        description="slots is the number of requests one pod works on at a time; more are refused.",
    )
    kv_cache_tokens: int | None = Field(
        None,
        ge=128,
        le=1_073_741_824,
        description=(
            "kvCacheTokens is how many tokens' keys and values one pod keeps, those for reuse by later prompts included. "
            "Left out, a decode pod has room for a whole context in each slot and a prefill pod for two contexts, at "
            "most half of the memory that the model leaves."
        ),
    )
    batch_tokens: int | None = Field(
        None,
        ge=16,
        le=1_048_576,
        description=(
            "batchTokens is how many tokens are computed in one pass; longer prompts take several. Left out, "
            f"{DEFAULT_BATCH_TOKENS['prefill']} on prefill pods and {DEFAULT_BATCH_TOKENS['decode']} on decode pods, "
            "where parts of prompts delay the answers' tokens."
        ),
    )
    accelerator: Name = Field(
        "cpu", description="accelerator names a row of the operator's accelerator table."
    )
    devices_per_pod: int = Field(
        1,
        ge=1,
        le=16,
        description="devicesPerPod is how many devices a pod asks for; without meaning for cpu.",
    )


class GatewayService(ApiModel):
    """The Service in front of the gateways."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        "ClusterIP", description="type is the Service's type."
    )
    port: int = Field(80, ge=1, le=65535, description="port is the Service's port.")
    node_port: int | None = Field(
        None, ge=1, le=65535, description="nodePort asks for one node port; without it the cluster chooses."
    )

    cel_rules = (
        CelRule(
            rule="!has(self.nodePort) || self.type != 'ClusterIP'",
            message="nodePort needs type NodePort or LoadBalancer",
            field_path=".nodePort",
        ),
    )


class Forwarding(ApiModel):
    """How a gateway finds a prefill for a request, and what it does while none is free (P/D-Serve §3.5)."""

    order: Literal["LeastLoaded", "FillFirst"] = Field(
        "LeastLoaded",
        description=(
            "order is which prefill is asked first: the one with the fewest requests, or, so that batches form soon, one that has "
            "some already, until it is full."
        ),
    )
    affinity: Literal["Prefix", "None"] = Field(
        "Prefix",
        description=(
            "affinity sends prompts that begin alike to the same prefill, where their KV may be cached, unless it has "
            "more than its share."
        ),
    )
    candidates: int = Field(
        4,
        ge=1,
        le=64,
        description="candidates is how many prefills are asked one after the other before a request pauses.",
    )
    max_waiting: int = Field(
        1024,
        ge=0,
        le=65_536,
        description="maxWaiting is how many requests may wait in a gateway for a free slot; more get 429.",
    )
    short_prompt_characters: int = Field(
        0,
        ge=0,
        le=1_048_576,
        description=(
            "shortPromptCharacters lets decodes that have room compute prompts of at most so many characters when "
            "all prefills are busy; 0 never does."
        ),
    )


class Gateway(PodRole):
    """The pods that take clients' requests."""

    replicas: int = Field(1, ge=1, le=64, description="replicas is the number of gateway pods.")
    service: GatewayService = Field(
        GatewayService(), description="service is how clients reach the gateways."
    )
    ttft_deadline_seconds: int = Field(
        30,
        ge=1,
        le=600,
        description="ttftDeadlineSeconds is how long a request may wait for a free prefill slot before it ends with 503.",
    )
    request_timeout_seconds: int = Field(
        300, ge=1, le=3600, description="requestTimeoutSeconds is the longest a request may take as a whole."
    )
    stream_idle_seconds: int = Field(
        30,
        ge=1,
        le=600,
        description="streamIdleSeconds is how long a stream may bring no token before its decode counts as lost.",
    )
    on_decode_loss: Literal["Resume", "Error", "DefaultText"] = Field(
        "Resume",
        description=(
            "onDecodeLoss is what happens to a stream whose decode is lost: it goes on elsewhere from the tokens already sent "
            "(an engine that does not tell its tokens, or a request for several choices, gets an error), it ends with an "
            "error, or it ends with defaultText."
        ),
    )
    default_text: str = Field(
        "",
        max_length=4096,
        description="defaultText ends a stream whose decode is lost, with onDecodeLoss DefaultText.",
    )
    forwarding: Forwarding = Field(
        Forwarding(), description="forwarding is how requests find a free prefill."
    )
    max_body_bytes: int = Field(
        1_048_576,
        ge=1024,
        le=67_108_864,
        description="maxBodyBytes bounds a request's body; larger ones get 413.",
    )
    api_keys_secret_ref: SecretKey | None = Field(
        None,
        description=(
            "apiKeysSecretRef holds the accepted API keys, one a line, each with its limits if it has any; "
            "without it no key is asked for."
        ),
    )
    page: Literal["Enabled", "Disabled"] = Field(
        "Enabled",
        description="page is whether the gateways show a page with a chat and live figures at /.",
    )

    cel_rules = (
        CelRule(
            rule="self.ttftDeadlineSeconds <= self.requestTimeoutSeconds",
            message="ttftDeadlineSeconds must not exceed requestTimeoutSeconds",
            field_path=".ttftDeadlineSeconds",
        ),
        CelRule(
            rule="(self.onDecodeLoss == 'DefaultText') == (has(self.defaultText) && self.defaultText != '')",
            message="defaultText belongs to onDecodeLoss DefaultText; give both or neither",
            field_path=".defaultText",
        ),
    )


class KVTransfer(ApiModel):
    """How a prompt's KV cache goes from the prefill pod that computed it to the decode pod that answers."""

    mode: Literal["Whole", "PerLayer"] = Field(
        "Whole",
        description=(
            "mode Whole sends a prompt's KV when it is computed, and the decode pod is chosen then. PerLayer sends each "
            "layer while the next ones are computed, to a decode pod that is chosen, and taken up, as soon as the prompt "
            "is accepted: it pays where the transfer takes long beside the computation."
        ),
    )


class Rollout(ApiModel):
    """How groups of a new revision replace those of the old: whole groups, at an unchanged ratio."""

    max_surge_groups: int = Field(
        1,
        ge=0,
        le=16,
        description="maxSurgeGroups is how many groups of a scenario may run beyond its number during a rollout.",
    )
    max_unavailable_groups: int = Field(
        0,
        ge=0,
        le=16,
        description="maxUnavailableGroups is how many of a scenario's groups may be missing during a rollout.",
    )
    max_skew_percent: int = Field(
        50,
        ge=0,
        le=1000,
        description=(
            "maxSkewPercent is how far, while the numbers of a group's pods change, the ratio of those that take requests may "
            "lie beside the wanted one: with 50, at most 1.5 times as many prefill pods for each decode pod, or the other way "
            "round. New pods that would go beyond are kept in reserve until their counterparts are ready."
        ),
    )
    role_flips: Literal["Enabled", "Disabled"] = Field(
        "Enabled",
        description=(
            "roleFlips is whether, when the ratio of a group changes, a running pod of the role that has too many takes the other "
            "role with its model loaded, instead of being deleted while a new one starts. It takes two roles with the same "
            "accelerator, devices, resources and template, and the built-in worker; slots and sizes may differ."
        ),
    )

    cel_rules = (
        CelRule(
            rule="self.maxSurgeGroups + self.maxUnavailableGroups > 0",
            message="maxSurgeGroups and maxUnavailableGroups must not both be 0, or no group could ever be replaced",
        ),
    )


class PDServiceSpec(ApiModel):
    """What is asked for."""

    model: Model = Field(description="model is what is served.")
    image: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="image runs in all pods; the operator's default if left out.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="imagePullPolicy is the pull policy of that image."
    )
    image_pull_secrets: tuple[Name, ...] = Field(
        (), max_length=8, description="imagePullSecrets are Secrets with the registry's credentials."
    )
    groups: int = Field(
        1,
        ge=0,
        le=512,
        description=(
            "groups is the number of groups for all requests but those of scenarios with groups of their own; each has "
            "the prefill and decode pods below."
        ),
    )
    disaggregation: Disaggregation = Field(
        "Always",
        description=(
            "disaggregation Always gives each group prefill and decode pods. With Never a group is combined: its decode pods "
            "compute the prompts, too, and prefill.replicas counts for nothing. Auto, with scaling, begins as Always, and lets "
            "the planner combine and divide a scenario's groups as it pays for the load."
        ),
    )
    prefill: ComputeRole = Field(ComputeRole(), description="prefill are the pods that read prompts.")
    decode: ComputeRole = Field(ComputeRole(), description="decode are the pods that write answers.")
    gateway: Gateway = Field(Gateway(), description="gateway are the pods that take requests.")
    scenarios: tuple[Scenario, ...] = Field(
        (),
        max_length=MOST_SCENARIOS,
        description=(
            "scenarios tell requests apart by what they are promised; the first one that matches a request is its scenario."
        ),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    slo: ServiceLevel = Field(
        ServiceLevel(),
        description="slo is what requests of no scenario are promised, and where a scenario's own slo leaves something out.",
    )
    scaling: Scaling = Field(Scaling(), description="scaling is how the numbers of pods follow the load.")
    allocation: Allocation | None = Field(
        None, description="allocation is how spare pods go round the scenarios; without it none do."
    )
    kv_transfer: KVTransfer = Field(
        KVTransfer(), description="kvTransfer is how KV caches go from prefill to decode."
    )
    rollout: Rollout = Field(Rollout(), description="rollout bounds how a change is rolled out.")
    drain_seconds: int = Field(
        30, ge=1, le=3600, description="drainSeconds is how long a leaving pod may finish its requests."
    )
    suspend: bool = Field(False, description="suspend removes all pods and keeps the resource.")

    cel_rules = (
        *(
            CelRule(
                rule=f"!has(self.{role}.kvCacheTokens) || self.{role}.kvCacheTokens >= self.model.maxContextTokens",
                message=f"{role}.kvCacheTokens must not be below model.maxContextTokens, or the longest request would not fit",
                field_path=f".{role}.kvCacheTokens",
            )
            for role in ("prefill", "decode")
        ),
        CelRule(
            rule=(
                "!has(self.scenarios) || self.scenarios.all(s, !has(s.ttftDeadlineSeconds) || "
                "s.ttftDeadlineSeconds <= self.gateway.requestTimeoutSeconds)"
            ),
            message="a scenario's ttftDeadlineSeconds must not exceed gateway.requestTimeoutSeconds",
            field_path=".scenarios",
        ),
        CelRule(
            rule=(
                "!has(self.scenarios) || self.scenarios.all(s, !has(s.match.modelAliases) || "
                "!(self.model.name in s.match.modelAliases))"
            ),
            message="a scenario's modelAliases must not repeat model.name, which every request may give",
            field_path=".scenarios",
        ),
        CelRule(
            rule=(
                "!has(self.allocation) || !has(self.allocation.scenarios) || self.allocation.scenarios.all(a, "
                "a.name == 'default' || (has(self.scenarios) && self.scenarios.exists(s, s.name == a.name)))"
            ),
            message="allocation.scenarios must name scenarios of this service, or default",
            field_path=".allocation.scenarios",
        ),
        CelRule(
            rule=f"!({_SOME_AUTO}) || (self.scaling.mode != 'Off' && has(self.scaling.profile))",
            message=(
                "disaggregation Auto needs scaling.mode Auto or Advise, and scaling.profile, by which the planner "
                "compares; give both, or choose Always or Never"
            ),
            field_path=".disaggregation",
        ),
        CelRule(
            rule=(
                f"!({_SOME_AUTO}) || (self.prefill.accelerator == self.decode.accelerator && "
                "self.prefill.devicesPerPod == self.decode.devicesPerPod)"
            ),
            message=(
                "disaggregation Auto needs the same accelerator and devicesPerPod for prefill and decode, as scaling.profile "
                "tells of prompts on prefill pods only; make them alike, or choose Always or Never"
            ),
            field_path=".disaggregation",
        ),
        CelRule(
            rule=(
                "self.disaggregation != 'Never' || !has(self.scenarios) || self.scenarios.all(s, !has(s.groups) || "
                "has(s.groups.disaggregation) || !has(s.groups.prefill))"
            ),
            message=(
                "a scenario's groups have no prefill pods with disaggregation Never; leave its groups.prefill out, or give "
                "its groups a disaggregation of their own"
            ),
            field_path=".scenarios",
        ),
        CelRule(
            rule=f"!({_ALL_NEVER}) || !has(self.allocation) || self.allocation.role != 'prefill'",
            message="allocation cannot lend prefill pods where no groups have any (disaggregation Never); lend decode",
            field_path=".allocation.role",
        ),
    )

    def disaggregation_of(self, scenario: str) -> Disaggregation:
        """That of a scenario with groups of its own, and of the groups for everybody for every other name."""
        own = next((one.groups for one in self.scenarios if one.name == scenario), None)
        return (own.disaggregation if own is not None else None) or self.disaggregation


class RoleStatus(ApiModel):
    """The pods of one role over all groups."""

    desired: int = Field(0, ge=0, description="desired is the number of pods asked for.")
    ready: int = Field(0, ge=0, description="ready is the number of pods that serve.")
    draining: int = Field(
        0, ge=0, description="draining is the number of pods that finish their last requests."
    )
    summary: PodCount = Field("0/0", description="summary is ready over desired.")


class ScenarioStatus(ApiModel):
    """One scenario's groups."""

    name: str = Field(
        max_length=63, description="name is the scenario's; `default` are the groups for everything else."
    )
    groups: int = Field(0, ge=0, description="groups is the number of groups asked for.")
    ready_groups: int = Field(0, ge=0, description="readyGroups is the number of groups that serve.")
    ratio: str = Field(
        "",
        max_length=16,
        description="ratio is prefill to decode pods asked for, over all groups; 0 prefill pods where they are combined.",
    )
    prefill: RoleStatus = Field(RoleStatus(), description="prefill counts its prefill pods.")
    decode: RoleStatus = Field(RoleStatus(), description="decode counts its decode pods.")
    reason: str = Field(
        "",
        max_length=1024,
        description="reason is where these numbers come from, such as spec or an autoscaler.",
    )


class PDServiceStatus(ApiModel):
    """What was observed. The operator writes it; everything but the decisions can be rebuilt by looking."""

    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=16,
        description="conditions are Ready (requests are answered), Progressing and Degraded.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    observed_generation: int = Field(
        0, ge=0, description="observedGeneration is the generation this status is about."
    )
    groups: int = Field(0, ge=0, description="groups is the number of groups that exist.")
    ready_groups: int = Field(0, ge=0, description="readyGroups is the number of groups that serve.")
    updated_groups: int = Field(
        0, ge=0, description="updatedGroups is the number of groups of the current revision."
    )
    default_groups: int = Field(
        0, ge=0, description="defaultGroups is the number of existing groups that spec.groups asks for."
    )
    selector: str = Field(
        "",
        max_length=512,
        description="selector finds the prefill and decode pods of the groups that spec.groups asks for, for autoscalers.",
    )
    revision: str = Field("", max_length=63, description="revision is the pod revision the spec asks for.")
    address: str = Field(
        "", max_length=512, description="address is the URL of the OpenAI-compatible API in the cluster."
    )
    ratio: str = Field(
        "",
        max_length=16,
        description="ratio is prefill to decode pods in a group for everybody; 0 prefill pods where it is combined.",
    )
    prefill: RoleStatus = Field(RoleStatus(), description="prefill counts the prefill pods.")
    decode: RoleStatus = Field(RoleStatus(), description="decode counts the decode pods.")
    gateway: RoleStatus = Field(RoleStatus(), description="gateway counts the gateway pods.")
    scenarios: tuple[ScenarioStatus, ...] = Field(
        (),
        max_length=MOST_SCENARIOS + 1,
        description=(
            "scenarios are the groups by scenario, when scenarios have groups of their own, or when something else than this "
            "spec may decide how many pods there are."
        ),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    scaling: ScalingStatus | None = Field(
        None, description="scaling is what the planner last found, with scaling.mode Advise or Auto."
    )
    allocation: AllocationStatus | None = Field(
        None,
        description="allocation is who is boosted in this round and what was learnt, with spec.allocation.",
    )
    decisions: tuple[Decision, ...] = Field(
        (),
        max_length=10,
        description="decisions are the last things the operator did and why, newest first.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class PDService(CustomResource):
    """PDService serves a model through prefill and decode pods on separate devices, in groups."""

    plural = "pdservices"
    short_names = ("pds",)
    scale = ScaleSubresource(
        spec_replicas_path=".spec.groups",
        status_replicas_path=".status.defaultGroups",
        label_selector_path=".status.selector",
    )
    printer_columns = (
        PrinterColumn(
            name="Ready",
            type="string",
            json_path=".status.conditions[?(@.type=='Ready')].status",
            description="Whether requests are answered.",
        ),
        PrinterColumn(
            name="Reason",
            type="string",
            json_path=".status.conditions[?(@.type=='Ready')].reason",
            description="Why it is ready or not.",
        ),
        PrinterColumn(
            name="Groups", type="integer", json_path=".status.readyGroups", description="Groups that serve."
        ),
        PrinterColumn(
            name="Prefill",
            type="string",
            json_path=".status.prefill.summary",
            description="Ready prefill pods.",
        ),
        PrinterColumn(
            name="Decode", type="string", json_path=".status.decode.summary", description="Ready decode pods."
        ),
        PrinterColumn(
            name="Gateway",
            type="string",
            json_path=".status.gateway.summary",
            description="Ready gateway pods.",
        ),
        PrinterColumn(
            name="Model",
            type="string",
            json_path=".spec.model.name",
            description="The served model.",
            priority=1,
        ),
        PrinterColumn(
            name="Ratio",
            type="string",
            json_path=".status.ratio",
            description="Prefill to decode.",
            priority=1,
        ),
        PrinterColumn(
            name="Needed",
            type="string",
            json_path=".status.scaling.scenarios[?(@.name=='default')].needed",
            description="Prefill to decode pods that the load needs.",
            priority=1,
        ),
        PrinterColumn(
            name="Bottleneck",
            type="string",
            json_path=".status.scaling.scenarios[?(@.name=='default')].bottleneck",
            description="What would fall short first.",
            priority=1,
        ),
        PrinterColumn(
            name="Revision",
            type="string",
            json_path=".status.revision",
            description="Pod revision.",
            priority=1,
        ),
        PrinterColumn(
            name="Address",
            type="string",
            json_path=".status.address",
            description="Where to send requests.",
            priority=1,
        ),
        PrinterColumn(
            name="Age",
            type="date",
            json_path=".metadata.creationTimestamp",
            description="Time since creation.",
        ),
    )
    cel_rules = (
        CelRule(
            rule=f"size(self.metadata.name) <= {LONGEST_NAME}",
            message=f"metadata.name must have at most {LONGEST_NAME} characters, as pods are named after it",
        ),
        CelRule(
            rule="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            message="metadata.name must be lower-case letters, digits and '-', start with a letter and have no dots",
        ),
    )

    spec: PDServiceSpec = Field(description="spec is what is asked for.")
    status: PDServiceStatus | None = Field(None, description="status is what was observed.")
