"""The `tidewheel` command: a thin shell that reads options and calls the layer that does the work."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from tidewheel import __version__

_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "TIDEWHEEL"})
@click.version_option(__version__)
def main() -> None:
    """Tidewheel: an operator for LLM serving and training on mixed accelerators."""


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if a file differs from the models.")
def crds(*, check: bool) -> None:
    """Write crds/ and the chart's copy of it from the API models."""
    from tidewheel.generated import crd_files, write_or_check

    _finish(write_or_check(crd_files(), check=check), "tidewheel crds")


@main.command()
@click.option("--check", is_flag=True, help="Change nothing; fail if a page differs from the models.")
def docs(*, check: bool) -> None:
    """Write the generated reference pages of docs/."""
    from tidewheel.generated import reference_files, write_or_check

    _finish(write_or_check(reference_files(), check=check), "tidewheel docs")


@main.command()
@click.option("--kubeconfig", type=_EXISTING, help="The cluster; otherwise $KUBECONFIG or the pod's own.")
@click.option(
    "--namespace", "namespaces", multiple=True, help="Look after this namespace only; may be repeated."
)
@click.option("--worker-image", help="The image of pods whose spec names none.")
@click.option(
    "--accelerators", type=_EXISTING, help="A YAML list of accelerator rows instead of the built-in ones."
)
@click.option("--leader-election/--no-leader-election", default=True, show_default=True)
@click.option(
    "--lease-namespace", help="Where the election's Lease is; otherwise the operator's own namespace."
)
@click.option("--lease-name", default="tidewheel-operator", show_default=True)
@click.option("--concurrency", type=int, default=4, show_default=True, help="Objects reconciled at a time.")
@click.option(
    "--resync-seconds", type=float, default=600, show_default=True, help="How often all are looked at."
)
@click.option("--health-address", help="HOST:PORT of /healthz and /readyz.")
@click.option("--metrics-address", help="HOST:PORT of /metrics.")
@click.option("--log-format", type=click.Choice(["json", "text"]), default="json", show_default=True)
@click.option("--log-level", default="info", show_default=True)
def operator(
    *,
    lease_namespace: str | None,
    lease_name: str,
    health_address: str | None,
    metrics_address: str | None,
    **options: Any,
) -> None:
    """Reconcile the cluster's PDServices until SIGTERM."""
    from pydantic import ValidationError

    from tidewheel.controllers.operator import run
    from tidewheel.controllers.settings import Address, LeaseSettings, OperatorSettings
    from tidewheel.kube.connection import NoConnection

    try:
        settings = OperatorSettings(
            lease=LeaseSettings(namespace=lease_namespace, name=lease_name),
            health_address=Address.parse(health_address) if health_address else None,
            metrics_address=Address.parse(metrics_address) if metrics_address else None,
            **options,
        )
        sys.exit(run(settings))
    except (NoConnection, ValidationError, ValueError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--kubeconfig", type=_EXISTING, help="The cluster; otherwise $KUBECONFIG.")
@click.option(
    "--nodes", type=_EXISTING, help="A YAML file of virtual nodes; otherwise one with this machine's size."
)
@click.option(
    "--data",
    type=_DIRECTORY,
    default=Path(".tidewheel/node"),
    show_default=True,
    help="Pods' files and logs.",
)
@click.option("--stand-in", is_flag=True, help="Pods become ready at once without processes.")
@click.option("--delete-nodes", is_flag=True, help="Delete the Node objects at the end.")
def node(**options: Any) -> None:
    """Give a cluster virtual nodes that run pods as processes of this machine."""
    from tidewheel.kube.connection import NoConnection
    from tidewheel.local.node.agent import DataDirectoryInUse, run_nodes
    from tidewheel.local.nodes import NodesFileError
    from tidewheel.local.signals import run_until_signalled

    try:
        run_until_signalled(run_nodes(**options))
    except (NoConnection, NodesFileError, DataDirectoryInUse) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option(
    "--kubeconfig", type=_FILE, default=Path(".tidewheel/kubeconfig"), show_default=True, help="Written here."
)
@click.option("--data", type=_DIRECTORY, help="Keep the objects here; otherwise they are in memory.")
@click.option("--nodes", type=_EXISTING, help="A YAML file of virtual nodes with made-up accelerators.")
@click.option("--port", type=int, default=0, help="The API server's port; otherwise a free one.")
@click.option("--operator/--no-operator", "with_operator", default=True, show_default=True)
def up(**options: Any) -> None:
    """Run a cluster on this machine until Ctrl-C. For development, tests and demonstrations."""
    from tidewheel.local.cluster import ClusterOptions, run_cluster
    from tidewheel.local.nodes import NodesFileError
    from tidewheel.local.signals import run_until_signalled

    try:
        run_until_signalled(run_cluster(ClusterOptions(**options), progress=_say))
    except (NodesFileError, OSError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("manifest", type=_EXISTING, default=Path("examples/pdservice.yaml"))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, as the last line.")
def demo(*, manifest: Path, as_json: bool) -> None:
    """Start a cluster, apply MANIFEST, ask questions, show the figures, tear everything down."""
    from rich.console import Console

    from tidewheel.local.demo import DemoFailed, run_demo

    try:
        asyncio.run(run_demo(manifest, console=Console(), as_json=as_json))
    except DemoFailed as error:
        raise click.ClickException(str(error)) from error


@main.group()
def simulate() -> None:
    """Try a service on a trace, without a cluster."""


@simulate.command("pdservice")
@click.argument("trace", type=_EXISTING, required=False)
@click.option("--profile", type=_EXISTING, help="A device's times, .npz or .csv; otherwise an H200's.")
@click.option("--prefill-slots", type=click.IntRange(min=1), help="Of a prefill; otherwise the profile's.")
@click.option("--decode-slots", type=click.IntRange(min=1), help="Of a decode; otherwise the profile's.")
@click.option("--kv-tokens", type=click.IntRange(min=1), help="A decode's room; otherwise the profile's.")
@click.option("--prefills", type=click.IntRange(min=1), default=2, show_default=True, help="At first.")
@click.option("--decodes", type=click.IntRange(min=1), default=1, show_default=True, help="At first.")
@click.option(
    "--planner",
    "planners",
    multiple=True,
    type=click.Choice(["tidewheel", "static", "reactive", "keda", "dynamo"]),
    default=("tidewheel", "static"),
    show_default=True,
    help="May be repeated: all are compared.",
)
@click.option(
    "--forwarding",
    type=click.Choice(["on-demand", "one-line", "local-queues", "round-robin"]),
    default="on-demand",
    show_default=True,
)
@click.option("--ttft-seconds", type=float, default=2.0, show_default=True)
@click.option("--tpot-seconds", type=float, default=0.03, show_default=True)
@click.option("--attainment", type=float, default=0.99, show_default=True, help="Share that gets each.")
@click.option("--start-seconds", type=float, default=60.0, show_default=True, help="Of a new instance.")
@click.option("--window-seconds", type=float, default=30.0, show_default=True, help="Between decisions.")
@click.option("--budget", type=click.IntRange(min=2), default=16, show_default=True, help="Accelerators.")
@click.option("--speed", type=float, default=1.0, show_default=True, help="How much faster requests come.")
@click.option("--fault", "faults", multiple=True, help="prefill@SECONDS or decode@SECONDS; may be repeated.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--html", type=_FILE, help="Write a page with all figures, charts and decisions.")
@click.option("--plot", type=_FILE, help="Write the chart of instances over time, as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, as the last line.")
def simulate_pdservice(*, html: Path | None, plot: Path | None, as_json: bool, **options: Any) -> None:
    """Serve TRACE with simulated prefills and decodes, and compare planners.

    TRACE is Mooncake's JSONL or Azure's CSV, also gzipped; without one, half an hour of chats and half an hour of long documents.
    """
    from rich.console import Console

    from tidewheel.simulating import Asked, CannotSimulate, json_of, report_on, table_of

    try:
        report = report_on(Asked(**options))
    except (CannotSimulate, ValueError) as error:
        raise click.ClickException(str(error)) from error
    Console(stderr=as_json).print(table_of(report))
    if html is not None:
        html.write_text(report.html())
    if plot is not None:
        plot.write_text(report.capacity_chart())
    if as_json:
        click.echo(json_of(report))


@main.command()
@click.argument("model")
@click.option("--device", default="cpu", show_default=True)
@click.option("--longest", type=click.IntRange(min=64), default=1024, show_default=True, help="Tokens.")
@click.option("--most", type=click.IntRange(min=2), default=16, show_default=True, help="Largest batch.")
@click.option("--out", type=_FILE, default=Path("profile.csv"), show_default=True)
def profile(*, model: str, device: str, longest: int, most: int, out: Path) -> None:
    """Measure the engine with MODEL on this machine, for `simulate pdservice --profile`.

    MODEL is package:<distribution> or path:<directory or .gguf file>. Needs the workers' packages.
    """
    from tidewheel.simulating import CannotSimulate, measure_profile

    try:
        rows = measure_profile(model, device=device, longest=longest, most=most, out=out)
    except CannotSimulate as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {rows} measurements")


def _say(what: str) -> None:
    click.echo(what)
    sys.stdout.flush()


def _finish(stale: list[Path], command: str) -> None:
    if stale:
        names = ", ".join(str(path) for path in stale)
        raise click.ClickException(f"not what the models say: {names}; run `{command}` and commit the result")


if __name__ == "__main__":
    sys.exit(main())
