"""A prompt's keys and values on their way out of the pool while the prompt is being computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidewheel_workers.llm.kv import as_tensor

if TYPE_CHECKING:
    from tidewheel_workers.llm.kv import KVCache, KVSlot
    from tidewheel_workers.llm.requests import Sink


class HandingOver:
    """Copies each part once, into the sink's buffer, as soon as it is final.

    A sink that fails is not asked again; `error` tells.
    """

    def __init__(self, kv: KVCache, sink: Sink, tokens: int) -> None:
        """For a prompt of that many tokens.

        Raises:
            KVMismatch: the sink has not exactly that much room.
        """
        self._kv = kv
        self._sink = sink
        self._out = as_tensor(kv.layout, tokens, sink.buffer)
        self._done = 0  # first tokens that are handed over in all layers
        self.error: Exception | None = None

    def catch_up(self, slot: KVSlot, tokens: int) -> None:
        """Everything of the first tokens that were not computed here but found."""
        for layer in range(self._kv.layout.layers):
            self.write(slot, layer, start=self._done, end=tokens)
        self.finish(tokens)

    def write(self, slot: KVSlot, layer: int, *, start: int, end: int) -> None:
        """One layer of the tokens from `start` to `end` is in the pool; what went out before does not go again."""
        start = max(start, self._done)
        if start >= end or self.error is not None:
            return
        try:
            self._kv.read_layer(slot, layer, self._out, start=start, tokens=end - start)
            self._sink.wrote(layer, start, end - start)
        except Exception as error:  # noqa: BLE001 - it is this prompt's alone; the pass goes on for the others
            self.error = error

    def finish(self, end: int) -> None:
        """All layers of the tokens up to `end` are written."""
        self._done = max(self._done, end)
