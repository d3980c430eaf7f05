"""The commands about clusters and what leaves a results folder: `bench submit` and `bench export`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console

    from bench.shipment import Shipment
    from bench.submit import JobServer

INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(submit)
    app.command()(export)


def submit(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- run ...", help="After --, what bench runs there.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster, as in http://head:8265; else RAY_API_SERVER_ADDRESS or RAY_ADDRESS."),
    ] = None,
    working_dir: Annotated[
        Path | None, typer.Option("--working-dir", help="A folder of your own to ship too; the job starts in it.")
    ] = None,
    environment: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="Set there; may be repeated. Nothing secret: it is stored."),
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Leave once the job is on its way.")] = False,
    status: Annotated[str | None, typer.Option(metavar="ID", help="Say how a job is doing.")] = None,
    logs: Annotated[str | None, typer.Option(metavar="ID", help="Follow a job until it ends.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="ID", help="Stop a job; what is finished stays.")] = None,
    list_jobs: Annotated[bool, typer.Option("--list", help="List the cluster's jobs.")] = False,
) -> None:
    """Run a sweep on a Ray cluster: ship the code, start the job, show its progress, end with its exit code."""
    wanted = {"-- run ...": command, "--status": status, "--logs": logs, "--stop": stop, "--list": list_jobs}
    asked = [name for name, value in wanted.items() if value]
    if len(asked) != 1:
        raise BadInput(f"bench submit: give one of {', '.join(wanted)}" + (f", not {len(asked)}" if asked else ""))
    shipment = None
    if command:
        shipment = _shipment(context, command, working_dir, environment or [])
    from bench.submit import connect_jobs

    server, console = connect_jobs(address), _console()
    if shipment:
        _send(server, shipment, console, wait=not no_wait)
    elif logs:
        raise typer.Exit(_follow(server, server.known(logs), console))
    elif stop:
        name = server.known(stop)
        console.print(f"{name}: {'stopping' if server.stop(name) else 'has ended already'}", markup=False)
    elif status:
        console.print(server.describe(server.known(status)), markup=False, soft_wrap=True)
    else:
        for line in server.listing() or ["no jobs"]:
            console.print(line, markup=False, soft_wrap=True)


def export(
    trial: Annotated[str, typer.Argument(help="The start of a trial's id, or a configuration's name with --seed.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; made if it is not there.")],
    out: Annotated[
        str, typer.Option("--out", help="Results folder or address that holds the trial.", envvar="BENCH_OUT")
    ] = "results",
    seed: Annotated[int | None, typer.Option(help="Which seed of a configuration.")] = None,
    sweep: Annotated[str | None, typer.Option("--sweep", help="Only this sweep's trials.")] = None,
) -> None:
    """Write a trained encoder as safetensors, with a model card and how to load it with torchvision or timm."""
    from bench import mirror
    from bench.export import export_trial

    done = export_trial(mirror.opened(out, "ledger", "sweeps"), trial, to, seed=seed, sweep=sweep)
    console = _console()
    console.print(f"{done.label} (trial {done.trial_id[:12]}) is in {to}: {done.size / 2**20:.1f} MB", markup=False)
    console.print(f"{to / 'README.md'} says what it is and how to load it", markup=False, soft_wrap=True)


def _shipment(
    context: typer.Context, command: list[str], working_dir: Path | None, environment: list[str]
) -> "Shipment":
    """What would be sent, checked as far as it can be here."""
    import inspect

    from bench.request import requested_sweep
    from bench.shipment import pack_shipment

    if command[0] != "run":
        raise BadInput(f"bench submit -- {command[0]}: only `run` is sent to a cluster, as in: bench submit -- run ...")
    root: Any = context.find_root().command
    options = root.get_command(context, "run").make_context("bench run", command[1:]).params
    asked = {name: options[name] for name in inspect.signature(requested_sweep).parameters}
    return pack_shipment(command, options, requested_sweep(**asked), working_dir=working_dir, environment=environment)


def _send(server: "JobServer", shipment: "Shipment", console: "Console", *, wait: bool) -> None:
    console.print(f"shipping {shipment.files} files, {shipment.size / 2**20:.1f} MB, to {server.address}", markup=False)
    name = server.start(shipment)
    console.print(f"job {name} is on its way", markup=False)
    if not wait:
        _hints(server, name, console)
        return
    code = _follow(server, name, console)
    raise typer.Exit(code)


def _follow(server: "JobServer", name: str, console: "Console") -> int:
    """Show the job's output until it ends; returns its exit code. Ctrl-C leaves it running."""
    try:
        for text in server.output(name):
            sys.stdout.write(text)
            sys.stdout.flush()
        ended = server.ended(name)
    except KeyboardInterrupt:
        console.print(f"\njob {name} goes on without you", markup=False)
        _hints(server, name, console)
        return INTERRUPTED
    if ended.code:
        console.print(f"job {name}: {ended.status.lower()}: {ended.message}", style="red", markup=False, soft_wrap=True)
    return ended.code


def _hints(server: "JobServer", name: str, console: "Console") -> None:
    for verb, option in (("follow", "logs"), ("ask", "status"), ("stop", "stop")):
        line = f"{verb} it: bench submit --address {server.address} --{option} {name}"
        console.print(line, markup=False, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)
