"""The compiled kernels (kernels/module.cpp). Addresses are `Tensor.data_ptr()`; kinds are 0 float32, 1 bfloat16, 2 int8."""

class Decoder:
    """Opaque: weights' addresses and the memory of a forward pass."""

def instruction_sets() -> list[str]:
    """The kernels that this processor can run, best first."""

def packed_bytes(kind: int, rows: int, columns: int, /) -> int:
    """Bytes of a packed matrix."""

def pack(
    isa: str, kind: int, source: int, rows: int, columns: int, target: int, first: int, half: int, /
) -> None:
    """Pack float32 rows into a matrix whose memory began as zeros.

    With `half` -1 they become its rows from `first` on. With 0 or 1 they become rows of the first or the second of two
    matrices of which sixteen rows alternate.
    """

def unpack(isa: str, kind: int, packed: int, rows: int, columns: int, out: int, /) -> None:
    """The rows of a packed matrix as float32."""

def multiply(
    isa: str, kind: int, rows: int, count: int, columns: int, packed: int, outputs: int, out: int, /
) -> None:
    """Multiply `count` float32 rows with a packed matrix of `outputs` rows into float32, on the calling thread."""

def decoder(
    isa: str,
    weights: int,
    pool: int,
    layers: int,
    hidden: int,
    feed_forward: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocab: int,
    norm_epsilon: float,
    /,
) -> Decoder:
    """A decoder of this shape, with weights of one kind and keys and values of another."""

def set_layer(
    decoder: Decoder,
    index: int,
    attention_norm: int,
    qkv: int,
    attention_out: int,
    feed_forward_norm: int,
    gate_up: int,
    down: int,
    /,
) -> None:
    """Where a layer's weights lie: float32 norms, packed matrices."""

def set_ends(decoder: Decoder, embedding: int, norm: int, head: int, turns: int, /) -> None:
    """Where embedding, last norm and head lie, and [positions, 2, head_dim / 2] float32 cosines and sines."""

def begin(decoder: Decoder, tokens: int, segments: list[tuple[int, int, int]], threads: int, /) -> None:
    """Take in int64 token ids; of each segment the address of its int64 pool rows, its first position and its length."""

def run_layers(decoder: Decoder, first: int, last: int, pool: int, pool_rows: int, threads: int, /) -> None:
    """Compute layers [first, last) of the pass that `begin` began."""

def finish(decoder: Decoder, logits: int, threads: int, /) -> None:
    """Float32 logits after the last token of each segment."""
