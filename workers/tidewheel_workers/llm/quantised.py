"""Weights of 8 bits for torch's own operations: what the compiled kernels hold, where these cannot run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

if TYPE_CHECKING:
    from collections.abc import Iterable

#: How weights are held: in the model's dtype, or as 8-bit numbers in blocks of 32 with a float16 scale.
Quantization = Literal["None", "Int8"]

BLOCK = 32
LARGEST = 127


@dataclass(frozen=True, slots=True, eq=False)
class Int8Matrix:
    """A matrix [rows, columns] in blocks of 32 neighbouring columns; the last block is filled up with zeros."""

    values: torch.Tensor  # int8 [rows, blocks, 32]
    scales: torch.Tensor  # float16 [rows, blocks, 1]
    columns: int
    dtype: torch.dtype  # of what comes out

    @classmethod
    def empty(cls, rows: int, columns: int, *, device: torch.device, dtype: torch.dtype) -> Int8Matrix:
        """Room for a matrix, to be filled by `put`."""
        blocks = -(-columns // BLOCK)
        return cls(
            torch.zeros(rows, blocks, BLOCK, dtype=torch.int8, device=device),
            torch.zeros(rows, blocks, 1, dtype=torch.float16, device=device),
            columns,
            dtype,
        )

    @property
    def shape(self) -> torch.Size:
        """[rows, columns]."""
        return torch.Size((self.values.shape[0], self.columns))

    def put(self, pieces: Iterable[tuple[int, torch.Tensor]], first: int) -> None:
        """Let the rows from `first` on be these pieces, each with its distance from `first`.

        The scale makes a block's largest magnitude 127; blocks that were Q8_0 before come out as they were.
        """
        for at, piece in pieces:
            filled = F.pad(piece.float(), (0, self.values.shape[1] * BLOCK - self.columns))
            blocks = filled.view(piece.shape[0], -1, BLOCK)
            scales = (blocks.abs().amax(-1, keepdim=True) / LARGEST).half()
            inverse = torch.where(scales > 0, 1 / scales.float(), 0.0)
            rows = slice(first + at, first + at + piece.shape[0])
            self.values[rows] = (blocks * inverse).round().clamp(-LARGEST, LARGEST).to(torch.int8)
            self.scales[rows] = scales

    def dense(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """These rows as numbers of `dtype`."""
        values = self.values[rows].to(self.dtype) * self.scales[rows].to(self.dtype)
        return values.flatten(1)[:, : self.columns]


Matrix = torch.Tensor | Int8Matrix


def project(x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """[tokens, columns] times the matrix, transposed: [tokens, rows]; 8-bit weights are made dense for the moment."""
    return F.linear(x, matrix if isinstance(matrix, torch.Tensor) else matrix.dense())


def look_up(ids: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """The rows of these numbers: [ids, columns]."""
    return F.embedding(ids, matrix) if isinstance(matrix, torch.Tensor) else matrix.dense(ids)
