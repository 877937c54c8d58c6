"""The engines that benchmarks/engine.py compares, each behind the same few calls and in a process of its own."""
