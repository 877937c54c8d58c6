"""Hugging Face transformers with its default attention (sdpa), a dynamic cache and no generate() around it."""

from __future__ import annotations

import os

import torch

from engine_arms.arm import Arm


class TransformersArm(Arm):
    def __init__(self, model: str, weights: str, threads: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        dtype = getattr(torch, weights)
        self._model = transformers.LlamaForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self._new_cache = transformers.DynamicCache
        config = self._model.config
        self.weight_bytes = sum(p.numel() for p in self._model.parameters()) * dtype.itemsize
        self.kv_bytes = (
            2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
        )

    def prefill(self, tokens: list[int]) -> int:
        with torch.inference_mode():
            return int(self._forward(torch.tensor([tokens]), self._new_cache()).argmax())

    def start(self, tokens: list[int], batch: int, steps: int) -> None:  # noqa: ARG002 - the cache grows by itself
        self._cache = self._new_cache()
        with torch.inference_mode():
            logits = self._forward(torch.tensor([tokens]), self._cache)
            self._cache.batch_repeat_interleave(batch)
        self._last = logits.argmax(-1).repeat(batch)

    def step(self) -> list[int]:
        with torch.inference_mode():
            self._last = self._forward(self._last[:, None], self._cache).argmax(-1)
        return self._last.tolist()

    def _forward(self, tokens: torch.Tensor, cache: object) -> torch.Tensor:
        return self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
