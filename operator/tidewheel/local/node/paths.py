"""Where an agent keeps things on disk: one tree per pod, claims beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PodPaths:
    """The directories of one pod; all of it goes when the pod does."""

    root: Path

    @property
    def home(self) -> Path:
        """HOME of the pod's processes, and their working directory unless the container names one."""
        return self.root / "home"

    @property
    def temporary(self) -> Path:
        """TMPDIR of the pod's processes."""
        return self.root / "tmp"

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig through which the pod reaches the API."""
        return self.root / "kubeconfig"

    def volume(self, name: str) -> Path:
        """The content of a volume."""
        return self.root / "volumes" / name

    def log(self, container: str, run: int) -> Path:
        """The log of one run of a container."""
        return self.root / "logs" / f"{container}-{run}.log"

    def termination_log(self, container: str) -> Path:
        """The file into which a container writes why it ends."""
        return self.root / "termination" / container

    def create(self) -> None:
        """Makes the directories."""
        for directory in (self.home, self.temporary, self.root / "logs", self.root / "termination"):
            directory.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True)
class AgentPaths:
    """The agent's directory."""

    root: Path

    @property
    def pods(self) -> Path:
        """One directory per pod, named by uid."""
        return self.root / "pods"

    def pod(self, uid: str) -> PodPaths:
        """The directories of one pod."""
        return PodPaths(self.pods / uid)

    def claim(self, namespace: str, name: str) -> Path:
        """The directory that stands for a PersistentVolumeClaim; it stays when pods go."""
        return self.root / "claims" / namespace / name
