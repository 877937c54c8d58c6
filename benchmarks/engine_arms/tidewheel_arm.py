"""This engine: `float32`, `bfloat16` or `int8` weights on its kernels, or with `-torch` on torch's operations."""

from __future__ import annotations

import math
import os

import torch

from engine_arms.arm import Arm


class TidewheelArm(Arm):
    def __init__(self, model: str, weights: str, threads: int) -> None:
        from tidewheel_workers.llm.native import VARIABLE

        kind, _, how = weights.partition("-")
        if how:
            os.environ[VARIABLE] = how
        from tidewheel_workers.llm.loading import load_model

        torch.set_num_threads(threads)
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        self._model = load_model(
            f"path:{model}", dtype=dtype, quantization="Int8" if kind == "int8" else "None"
        ).model
        if not how:
            torch.set_num_threads(1)  # as the server does: the kernels have threads of their own
        c = self._model.config
        queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
        per_layer = c.hidden * (2 * queries + 2 * keys + 3 * c.feed_forward)
        each = {"float32": 4.0, "bfloat16": 2.0, "int8": 1 + 2 / 32}[kind]
        self.weight_bytes = math.ceil((c.layers * per_layer + c.vocab * c.hidden) * each)
        self.kv_bytes = 2 * c.layers * keys * dtype.itemsize

    def prefill(self, tokens: list[int]) -> int:
        from tidewheel_workers.llm.kv import KVCache, KVLayout
        from tidewheel_workers.llm.model import Segment

        layout = KVLayout.of(self._model.config, self._model.dtype)
        if not hasattr(self, "_room") or self._room.capacity_tokens < len(tokens):
            self._room = KVCache(layout, blocks=layout.blocks_for(len(tokens)))
        slot = self._room.allocate(len(tokens))
        with torch.inference_mode():
            logits = self._model.forward(
                torch.tensor(tokens), [Segment(slot=slot, start=0, tokens=len(tokens))], self._room
            )
        self._room.free(slot)
        return int(logits.argmax())

    def start(self, tokens: list[int], batch: int, steps: int) -> None:
        from tidewheel_workers.llm.kv import KVCache, KVLayout
        from tidewheel_workers.llm.model import Segment

        layout = KVLayout.of(self._model.config, self._model.dtype)
        room = len(tokens) + steps
        self._kv = KVCache(layout, blocks=layout.blocks_for(room) * batch)
        self._slots = [self._kv.allocate(room) for _ in range(batch)]
        with torch.inference_mode():
            logits = self._model.forward(
                torch.tensor(tokens), [Segment(slot=self._slots[0], start=0, tokens=len(tokens))], self._kv
            )
        computed = self._kv.pool[:, :, self._slots[0].rows[: len(tokens)]]
        for slot in self._slots[1:]:
            self._kv.pool[:, :, slot.rows[: len(tokens)]] = computed
        self._last, self._at = logits.argmax(-1).repeat(batch), len(tokens)

    def step(self) -> list[int]:
        from tidewheel_workers.llm.model import Segment

        with torch.inference_mode():
            logits = self._model.forward(
                self._last, [Segment(slot=slot, start=self._at, tokens=1) for slot in self._slots], self._kv
            )
            self._last = logits.argmax(-1)
        self._at += 1
        return self._last.tolist()
