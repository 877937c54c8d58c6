"""Simulators that drive the planning code with traces."""
