"""The built-in torch engine behind the servers' seam: the only serving module that imports torch."""

from __future__ import annotations

import gc
import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from tidewheel.api.pdservice import DEFAULT_BATCH_TOKENS
from tidewheel_workers.llm.device import DEVICES, Device, find_device, use_threads
from tidewheel_workers.llm.engine import Engine, EngineLimits
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.loading import LoadedModel, load_model
from tidewheel_workers.llm.native import NativeLlama
from tidewheel_workers.llm.requests import ComputedPrompt, FailureEvent, PromptEvent, Request, TokenEvent
from tidewheel_workers.llm.sampling import Sampled, SamplingParams, TokenLogprob
from tidewheel_workers.serving.cache_size import cache_tokens, memory_left
from tidewheel_workers.serving.engine import (
    Computed,
    EngineIdentity,
    EngineLoad,
    Failed,
    First,
    Generated,
    Happening,
    KVShape,
    Logprob,
)
from tidewheel_workers.serving.start_errors import CannotStart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidewheel_workers.llm.requests import Event
    from tidewheel_workers.serving.engine import KVSink, Prefilled, Prompt
    from tidewheel_workers.serving.settings import WorkerSettings

log = logging.getLogger(__name__)

#: Answers to one request are written together, also by a server with fewer slots.
LEAST_SEQUENCES = 16


class TorchEngine:
    """`llm.engine.Engine` as a `ServingEngine`: values are translated, nothing is decided."""

    def __init__(self, loaded: LoadedModel, kv: KVCache, limits: EngineLimits) -> None:
        self._loaded = loaded
        self._device = kv.device
        self._tokenizer = loaded.tokenizer
        self._engine = Engine(loaded.model, loaded.tokenizer, kv, limits)
        self.max_context = self._engine.max_context
        self.identity = EngineIdentity(
            model_digest=loaded.digest,
            layout_digest=kv.layout.digest(),
            kv=KVShape(
                layers=kv.layout.layers,
                kv_heads=kv.layout.kv_heads,
                head_dim=kv.layout.head_dim,
                dtype=kv.layout.dtype_name,
            ),
        )

    @classmethod
    def load_for(cls, settings: WorkerSettings) -> TorchEngine:
        """The engine that a worker's settings ask for.

        Raises:
            ModelError: with the reason that the operator shows.
        """
        if "OMP_NUM_THREADS" not in os.environ:  # who sets it knows how the cores are shared
            use_threads()
        row = find_device(settings.device, _rows(settings))
        device = torch.device(row.torch_device)
        loaded = load_model(
            settings.model_source,
            device=device,
            dtype=row.dtype(settings.dtype),
            quantization=settings.quantization,
        )
        if isinstance(loaded.model, NativeLlama):
            torch.set_num_threads(
                1
            )  # what is left for torch is small, and its waiting threads would be in the way
        return cls(loaded, *_sized(loaded, settings, device))

    def fit(self, settings: WorkerSettings) -> None:
        """As in `ServingEngine`: the KV cache and the scheduler are made anew."""
        # the old cache goes first, as a device may not hold both
        del self._engine
        gc.collect()
        if self._device.type != "cpu":
            getattr(torch, self._device.type).empty_cache()
        try:
            kv, limits = _sized(self._loaded, settings, self._device)
        except (RuntimeError, MemoryError) as error:
            raise CannotStart(f"no room for the KV cache of a {settings.role} server: {error}") from error
        self._engine = Engine(self._loaded.model, self._tokenizer, kv, limits)
        self.max_context = self._engine.max_context

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """As in `ServingEngine`."""
        return self._tokenizer.apply_chat_template(messages)

    def encode_text(self, text: str) -> list[int]:
        """As in `ServingEngine`."""
        return self._tokenizer.encode(text)

    def token_bytes(self, token: int) -> bytes:
        """As in `ServingEngine`."""
        return self._tokenizer.token_bytes(token)

    def cached_tokens(self, token_ids: Sequence[int]) -> int:
        """As in `ServingEngine`."""
        return self._engine.cached_tokens(token_ids)

    def submit(self, prompt: Prompt, sink: KVSink | None) -> None:
        """As in `ServingEngine`."""
        self._engine.submit(_request(prompt), sink)

    def admit(self, prompt: Prompt, computed: Prefilled) -> list[Generated]:
        """As in `ServingEngine`."""
        first = [Sampled(token=one.token, logprob=_token_logprob(one.logprob)) for one in computed.first]
        events = self._engine.admit(
            _request(prompt), ComputedPrompt(first=first, tokens=computed.tokens, kv=computed.kv)
        )
        return [_generated(event) for event in events]

    def step(self) -> list[Happening]:
        """As in `ServingEngine`."""
        return [_happening(event) for event in self._engine.step()]

    def abort(self, request_id: str) -> None:
        """As in `ServingEngine`."""
        self._engine.abort(request_id)

    def load(self) -> EngineLoad:
        """As in `ServingEngine`."""
        stats = self._engine.stats()
        return EngineLoad(
            running=stats.running,
            waiting=stats.waiting,
            kv_usage=stats.kv_usage,
            prefix_queries=stats.prefix_queries,
            prefix_hits=stats.prefix_hits,
            preemptions=stats.preemptions,
        )


def _sized(
    loaded: LoadedModel, settings: WorkerSettings, device: torch.device
) -> tuple[KVCache, EngineLimits]:
    """The KV cache and the limits of an engine of that role."""
    layout = KVLayout.of(loaded.model.config, loaded.model.dtype)
    context = min(settings.max_context_tokens, loaded.model.config.max_positions)
    tokens = cache_tokens(
        settings, context=context, token_bytes=layout.bytes_for(1), left=memory_left(device)
    )
    kv = KVCache(layout, blocks=layout.blocks_for(tokens), device=device)
    log.info("the KV cache holds %d tokens in %d MiB", kv.capacity_tokens, kv.pool.nbytes >> 20)
    return kv, EngineLimits(
        max_running=max(settings.slots, LEAST_SEQUENCES),
        max_context=context,
        batch_tokens=settings.batch_tokens or DEFAULT_BATCH_TOKENS[settings.role],
    )


def _rows(settings: WorkerSettings) -> tuple[Device, ...]:
    """The known devices, and the one that the operator's table adds by naming torch's module for it."""
    if settings.device_module is None or any(row.name == settings.device for row in DEVICES):
        return DEVICES
    added = Device(
        name=settings.device,
        torch_device=settings.device,
        backend_module=settings.device_module,
        default_dtype=torch.bfloat16,
    )
    return (*DEVICES, added)


def _request(prompt: Prompt) -> Request:
    return Request(
        request_id=prompt.request_id,
        token_ids=prompt.token_ids,
        params=SamplingParams(**asdict(prompt.sampling)),
        choices=prompt.choices,
        resumed=prompt.resumed,
    )


def _happening(event: Event) -> Happening:
    match event:
        case TokenEvent():
            return _generated(event)
        case PromptEvent():
            first = tuple(First(token=one.token, logprob=_logprob(one.logprob)) for one in event.first)
            return Computed(request_id=event.request_id, first=first, cached_tokens=event.cached_tokens)
        case FailureEvent():
            return Failed(request_id=event.request_id, error=event.error)


def _generated(event: TokenEvent) -> Generated:
    return Generated(
        request_id=event.request_id,
        token=event.token,
        text=event.text,
        output_tokens=event.output_tokens,
        choice=event.choice,
        finish_reason=event.finish_reason,
        logprob=_logprob(event.logprob),
    )


def _logprob(logprob: TokenLogprob | None) -> Logprob | None:
    if logprob is None:
        return None
    return Logprob(token=logprob.token, logprob=logprob.logprob, top=logprob.top)


def _token_logprob(logprob: Logprob | None) -> TokenLogprob | None:
    if logprob is None:
        return None
    return TokenLogprob(token=logprob.token, logprob=logprob.logprob, top=logprob.top)
