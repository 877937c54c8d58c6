"""Which parts of a prompt's keys and values are written, sent and received: bookkeeping without sockets and threads.

A buffer holds [layers, 2, tokens, kv_heads, head_dim]: for each layer a plane of keys and a plane of values, a plane being
one vector per token. A part is a run of tokens in one plane, in both planes of a layer, or in all planes of several layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidewheel_workers.serving.engine import KVShape

#: Tokens in one message of the baseline, which sends what PagedAttention keeps together: one block of one plane.
BLOCK_TOKENS = 16


class Plane(IntEnum):
    """Which of a layer's two planes."""

    KEYS = 0
    VALUES = 1
    BOTH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tokens `start` to `start + tokens` of `layers` layers from `layer` on."""

    layer: int
    start: int
    tokens: int
    layers: int = 1
    plane: Plane = Plane.BOTH

    @property
    def vectors(self) -> int:
        """Vectors inside: one per layer, plane and token."""
        return self.layers * self.tokens * (2 if self.plane is Plane.BOTH else 1)


class BadPart(ValueError):
    """A part that does not belong to this buffer, or not now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The size of a buffer, and where its parts lie."""

    layers: int
    tokens: int
    vector_bytes: int

    @classmethod
    def of(cls, shape: KVShape, tokens: int) -> Extent:
        """The keys and values of that many tokens."""
        return cls(layers=shape.layers, tokens=tokens, vector_bytes=shape.bytes_for(1) // (2 * shape.layers))

    @property
    def whole(self) -> Part:
        """Everything."""
        return Part(layer=0, layers=self.layers, start=0, tokens=self.tokens)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.bytes_of(self.whole)

    def bytes_of(self, part: Part) -> int:
        """The bytes of a part."""
        return part.vectors * self.vector_bytes

    def slices(self, part: Part) -> list[slice]:
        """Where the part's bytes lie, in their order on the wire; neighbours are one slice.

        Raises:
            BadPart: the part is empty, passes the buffer's end, or takes tokens out of the middle of several layers.
        """
        self._check(part)
        planes = (part.plane,) if part.plane is not Plane.BOTH else (Plane.KEYS, Plane.VALUES)
        if part.tokens == self.tokens and part.plane is Plane.BOTH:
            begin = part.layer * 2 * self.tokens * self.vector_bytes
            return [slice(begin, begin + self.bytes_of(part))]
        size = part.tokens * self.vector_bytes
        begins = [
            ((part.layer * 2 + plane) * self.tokens + part.start) * self.vector_bytes for plane in planes
        ]
        return [slice(begin, begin + size) for begin in begins]

    def blocks(self, part: Part) -> Iterator[Part]:
        """A part of both planes in the baseline's pieces: one block of one plane each."""
        end = part.start + part.tokens
        for layer in range(part.layer, part.layer + part.layers):
            for plane in (Plane.KEYS, Plane.VALUES):
                for start in range(part.start, end, BLOCK_TOKENS):
                    yield Part(layer=layer, plane=plane, start=start, tokens=min(BLOCK_TOKENS, end - start))

    def _check(self, part: Part) -> None:
        if (
            part.layers < 1
            or part.tokens < 1
            or part.layer < 0
            or part.start < 0
            or part.layer + part.layers > self.layers
            or part.start + part.tokens > self.tokens
        ):
            raise BadPart(f"{part} is not within {self.layers} layers of {self.tokens} tokens")
        if part.layers > 1 and (part.tokens < self.tokens or part.plane is not Plane.BOTH):
            raise BadPart(f"{part} takes pieces out of {part.layers} layers; only whole layers go together")


class Written:
    """What an engine has written, and what of that was not taken yet: the sender's view."""

    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        self._final = [0] * extent.layers  # tokens that do not change any more
        self._taken = [0] * extent.layers

    @property
    def is_whole(self) -> bool:
        """Whether everything was written."""
        return all(final == self._extent.tokens for final in self._final)

    def add(self, layer: int, start: int, tokens: int) -> None:
        """More of a layer is final. What was final before may be told again.

        Raises:
            BadPart: it is outside the buffer, or leaves a gap behind what is final.
        """
        end = start + tokens
        if not 0 <= layer < len(self._final) or tokens < 0 or start < 0 or end > self._extent.tokens:
            raise BadPart(f"tokens {start} to {end} of layer {layer} are not in this buffer")
        if start > self._final[layer]:
            raise BadPart(f"layer {layer} is written up to token {self._final[layer]}; {start} leaves a gap")
        self._final[layer] = max(self._final[layer], end)

    def take(self) -> list[Part]:
        """What is final and was not taken before, in as few parts as possible."""
        parts: list[Part] = []
        for layer, (taken, final) in enumerate(zip(self._taken, self._final, strict=True)):
            if taken == final:
                continue
            part = Part(layer=layer, start=taken, tokens=final - taken)
            if parts and part.tokens == self._extent.tokens == parts[-1].tokens and _meet(parts[-1], part):
                last = parts.pop()
                part = Part(layer=last.layer, layers=last.layers + 1, start=0, tokens=part.tokens)
            parts.append(part)
            self._taken[layer] = final
        return parts


class Arrived:
    """What has come of a buffer: the receiver's view. Each vector has to come once, a plane's tokens in their order."""

    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        self._next = [0] * (2 * extent.layers)  # per plane: the token that comes next

    @property
    def is_whole(self) -> bool:
        """Whether everything has come."""
        return all(token == self._extent.tokens for token in self._next)

    def add(self, part: Part) -> list[slice]:
        """Where the next part belongs.

        Raises:
            BadPart: it is not within the buffer, came before, or leaves a gap.
        """
        slices = self._extent.slices(part)
        if part.plane is Plane.BOTH:
            planes = range(2 * part.layer, 2 * (part.layer + part.layers))
        else:
            planes = range(2 * part.layer + part.plane, 2 * part.layer + part.plane + 1)
        for plane in planes:
            if self._next[plane] != part.start:
                raise BadPart(
                    f"{part} came where token {self._next[plane]} of layer {plane // 2} is the next"
                )
        for plane in planes:
            self._next[plane] = part.start + part.tokens
        return slices


def _meet(one: Part, other: Part) -> bool:
    return one.layer + one.layers == other.layer
