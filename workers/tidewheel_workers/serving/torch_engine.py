"""The built-in torch engine behind the servers' seam: the only serving module that imports torch."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from tidewheel_workers.llm import engine as llm
from tidewheel_workers.llm.device import DEVICES, Device, find_device, use_threads
from tidewheel_workers.llm.kv import KVBlob, KVCache, KVLayout
from tidewheel_workers.llm.loading import LoadedModel, load_model
from tidewheel_workers.llm.sampling import SamplingParams, TokenLogprob
from tidewheel_workers.serving.engine import (
    Computed,
    EngineIdentity,
    EngineLoad,
    First,
    Generated,
    Happening,
    KVShape,
    Logprob,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidewheel_workers.serving.engine import KVSink, Prefilled, Prompt, Sampling
    from tidewheel_workers.serving.settings import WorkerSettings


class TorchEngine:
    """`llm.engine.Engine` as a `ServingEngine`: values are translated, nothing is decided."""

    def __init__(self, loaded: LoadedModel, kv: KVCache, limits: llm.EngineLimits) -> None:
        self._tokenizer = loaded.tokenizer
        self._engine = llm.Engine(loaded.model, loaded.tokenizer, kv, limits)
        self._layout = kv.layout
        self._waiting: dict[str, tuple[Prompt, KVSink | None]] = {}
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
        loaded = load_model(settings.model_source, device=device, dtype=row.dtype(settings.dtype))
        layout = KVLayout.of(loaded.model.config, loaded.model.dtype)
        context = min(settings.max_context_tokens, loaded.model.config.max_positions)
        # a prefill server exports each prompt before it computes the next
        sequences = settings.slots if settings.role == "decode" else 1
        kv = KVCache(layout, blocks=layout.blocks_for(context) * sequences, device=device)
        return cls(loaded, kv, llm.EngineLimits(max_running=settings.slots, max_context=context))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """As in `ServingEngine`."""
        return self._tokenizer.apply_chat_template(messages)

    def encode_text(self, text: str) -> list[int]:
        """As in `ServingEngine`."""
        return self._tokenizer.encode(text)

    def token_bytes(self, token: int) -> bytes:
        """As in `ServingEngine`."""
        return self._tokenizer.token_bytes(token)

    def cached_tokens(self, token_ids: Sequence[int]) -> int:  # noqa: ARG002 - nothing is kept between requests
        """As in `ServingEngine`."""
        return 0

    def submit(self, prompt: Prompt, sink: KVSink | None) -> None:
        """As in `ServingEngine`."""
        self._engine.check(prompt.request_id, prompt.token_ids)
        self._waiting[prompt.request_id] = (prompt, sink)

    def admit(self, prompt: Prompt, computed: Prefilled) -> list[Generated]:
        """As in `ServingEngine`."""
        first = computed.first[0]
        event = self._engine.admit(
            prompt.request_id,
            prompt.token_ids,
            first.token,
            _params(prompt.sampling),
            blob=KVBlob.from_bytes(self._layout, computed.tokens, computed.kv),
            logprob=None
            if first.logprob is None
            else TokenLogprob(
                token=first.logprob.token, logprob=first.logprob.logprob, top=first.logprob.top
            ),
        )
        return [_generated(event)]

    def step(self) -> list[Happening]:
        """As in `ServingEngine`."""
        happened: list[Happening] = []
        if self._waiting:
            request_id = next(iter(self._waiting))
            happened.append(self._compute(*self._waiting.pop(request_id)))
        happened += [_generated(event) for event in self._engine.step()]
        return happened

    def abort(self, request_id: str) -> None:
        """As in `ServingEngine`."""
        self._waiting.pop(request_id, None)
        self._engine.abort(request_id)

    def load(self) -> EngineLoad:
        """As in `ServingEngine`."""
        stats = self._engine.stats()
        return EngineLoad(running=stats.running, waiting=len(self._waiting), kv_usage=stats.kv_usage)

    def _compute(self, prompt: Prompt, sink: KVSink | None) -> Happening:
        params = _params(prompt.sampling)
        result = self._engine.prefill(prompt.request_id, prompt.token_ids, params)
        if sink is None:
            return _generated(
                self._engine.admit(
                    prompt.request_id, prompt.token_ids, result.first_token, params, logprob=result.logprob
                )
            )
        try:
            sink.buffer[:] = self._engine.export(prompt.request_id).as_bytes()
        finally:
            self._engine.release(prompt.request_id)
        for layer in range(self._layout.layers):
            sink.wrote(layer, 0, result.kv_tokens)
        first = First(token=result.first_token, logprob=_logprob(result.logprob))
        return Computed(request_id=prompt.request_id, first=(first,))


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


def _params(sampling: Sampling) -> SamplingParams:
    return SamplingParams(**asdict(sampling))


def _logprob(logprob: TokenLogprob | None) -> Logprob | None:
    if logprob is None:
        return None
    return Logprob(token=logprob.token, logprob=logprob.logprob, top=logprob.top)


def _generated(event: llm.TokenEvent) -> Generated:
    return Generated(
        request_id=event.request_id,
        token=event.token,
        text=event.text,
        output_tokens=event.output_tokens,
        finish_reason=event.finish_reason,
        logprob=_logprob(event.logprob),
    )
