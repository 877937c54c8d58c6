"""llama.cpp through its own C interface (the `llama-cpp-python` package brings it): one context per measurement, each
sequence with a stream of its own (its default, and the faster one), defaults otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine_arms.arm import Arm


class LlamaCppArm(Arm):
    def __init__(self, model: str, weights: str, threads: int) -> None:  # noqa: ARG002 - the file says which weights
        import llama_cpp as native

        self._n = native
        self._quiet = native.llama_log_callback(lambda *_: None)
        native.llama_log_set(self._quiet, None)
        native.llama_backend_init()
        params = native.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = native.llama_model_load_from_file(model.encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {model}")
        self._threads = threads
        self._vocab = native.llama_vocab_n_tokens(native.llama_model_get_vocab(self._model))
        heads, kv_heads = native.llama_model_n_head(self._model), native.llama_model_n_head_kv(self._model)
        head_dim = native.llama_model_n_embd(self._model) // heads
        self.weight_bytes = Path(model).stat().st_size
        self.kv_bytes = 2 * native.llama_model_n_layer(self._model) * kv_heads * head_dim * 2
        self._context = None

    def prefill(self, tokens: list[int]) -> int:
        self._open(len(tokens), 1)
        return int(self._compute([(token, at, 0) for at, token in enumerate(tokens)], last_only=True)[0])

    def start(self, tokens: list[int], batch: int, steps: int) -> None:
        self._open((len(tokens) + steps + 1) * batch, batch)
        first = self._compute([(token, at, 0) for at, token in enumerate(tokens)], last_only=True)[0]
        memory = self._n.llama_get_memory(self._context)
        for sequence in range(1, batch):
            self._n.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        self._last, self._at = [int(first)] * batch, len(tokens)

    def step(self) -> list[int]:
        part = [(token, self._at, sequence) for sequence, token in enumerate(self._last)]
        self._last = self._compute(part, last_only=False).tolist()
        self._at += 1
        return self._last

    def _open(self, tokens: int, sequences: int) -> None:
        if self._context:
            self._n.llama_free(self._context)
        params = self._n.llama_context_default_params()
        # a stream's length is rounded up to 256 inside
        params.n_ctx = max(-(-tokens // sequences // 256) * 256, 256) * sequences
        params.n_batch = 2048
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self._threads
        self._context = self._n.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit("llama.cpp cannot make a context")

    def _compute(self, part: list[tuple[int, int, int]], *, last_only: bool) -> np.ndarray:
        batch = self._n.llama_batch_init(len(part), 0, 1)
        batch.n_tokens = len(part)
        for i, (token, position, sequence) in enumerate(part):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = not last_only or i == len(part) - 1
        if self._n.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp refuses the batch")
        rows = 1 if last_only else len(part)
        logits = np.ctypeslib.as_array(self._n.llama_get_logits(self._context), (rows, self._vocab))
        chosen = logits.argmax(-1)
        self._n.llama_batch_free(batch)
        return chosen
