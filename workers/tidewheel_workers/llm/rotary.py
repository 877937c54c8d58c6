"""Rotary positions: the frequencies that every implementation of the decoder turns its queries and keys with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tidewheel_workers.llm.config import ModelConfig


def rotary_frequencies(config: ModelConfig, divisors: torch.Tensor | None = None) -> torch.Tensor:
    """Radians per position of each pair of dimensions, float32 in host memory.

    Args:
        config: names the base and, where there is one, Llama 3's stretching.
        divisors: per frequency, where a GGUF file brings the stretching instead.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = torch.tensor([config.rope_scaling.stretch(f) for f in frequencies.tolist()])
    if divisors is not None:
        frequencies = frequencies / divisors.to("cpu", torch.float64)
    return frequencies.float()
