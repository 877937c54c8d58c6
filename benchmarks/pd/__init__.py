"""What the benchmarks of simulated PDServices share: traces, devices, and how figures are told."""
