"""The control loops: observe, plan, execute, report."""
