"""The built-in LLM engine: model, weights, tokenizer, KV cache, sampling, batching."""
