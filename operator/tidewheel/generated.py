"""Which files of the repository are generated from the models, and how to write or check them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from tidewheel.api.crd import all_crds
from tidewheel.api.pdservice import PDService
from tidewheel.api.reference import reasons_page, reference_page
from tidewheel.api.scaler import PDServiceScaler

_CRD_DIRECTORIES = (Path("crds"), Path("charts/tidewheel/files/crds"))
_PDSERVICE_INTRODUCTION = """
A `PDService` serves one model behind an OpenAI-compatible endpoint. Each group has prefill pods, which read
prompts, and decode pods, which write answers; gateways take the requests. Short name: `pds`; all kinds of
Tidewheel: `kubectl get tidewheel`. Defaults are filled in by the API server, so `kubectl get -o yaml` shows them.
`kubectl explain pdservice.spec` shows the same texts.
"""
_SCALER_INTRODUCTION = """
A `PDServiceScaler` stands for one role of one scenario of a `PDService` and has the `scale` subresource, so that an HPA, KEDA or `kubectl scale` can drive
the number of its prefill or decode pods. Short name: `pdss`. It is refused, with the reason in its condition `Active`, where the operator decides that number
itself (`spec.scaling.mode: Auto`) or an older PDServiceScaler scales the same pods.
"""


def crd_files() -> dict[Path, str]:
    """The CRD manifests: for `kubectl apply -f crds/`, and byte for byte the same for the chart."""
    files = {}
    for crd in all_crds():
        text = yaml.safe_dump(crd, sort_keys=False, width=110, allow_unicode=True)
        for directory in _CRD_DIRECTORIES:
            files[directory / f"{crd['metadata']['name']}.yaml"] = text
    return files


def reference_files() -> dict[Path, str]:
    """The reference pages of docs/."""
    return {
        Path("docs/reference/pdservice.md"): reference_page(PDService, _PDSERVICE_INTRODUCTION),
        Path("docs/reference/pdservicescaler.md"): reference_page(PDServiceScaler, _SCALER_INTRODUCTION),
        Path("docs/reference/reasons.md"): reasons_page(),
    }


def write_or_check(files: Mapping[Path, str], *, check: bool) -> list[Path]:
    """Writes what differs, relative to the working directory; with `check` only names it."""
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if check:
        return stale
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
    return []
