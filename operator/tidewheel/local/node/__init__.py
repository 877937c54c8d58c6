"""The node agent: virtual nodes whose pods run as processes of this machine."""

from tidewheel.local.node.agent import AgentOptions, DataDirectoryInUse, NodeAgent, run_nodes

__all__ = ["AgentOptions", "DataDirectoryInUse", "NodeAgent", "run_nodes"]
