"""The command that looks at running sweeps: `bench watch`, in the terminal or as a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.errors import BadInput
from bench.storage import is_remote

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(watch)


def watch(
    out: Annotated[
        str, typer.Option("--out", help="The folder of the runs' results; it is only read.", envvar="BENCH_OUT")
    ] = "results",
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="A sweep's name; else the newest that runs (--serve: all).")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and leave, as without a terminal.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the report's page over HTTP, with the live progress on top.")
    ] = False,
    host: Annotated[str | None, typer.Option(help="With --serve: where to listen; else 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="With --serve: the port; else any that is free.")
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="With --serve: whether the page has pictures.")
    ] = True,
) -> None:
    """Show the live progress of a running sweep, from any terminal, until it is done."""
    console = _console()
    if is_remote(out):
        raise BadInput(f"--out {out}: bench watch reads a folder; drivers that write to a store say nothing there")
    folder = Path(out.removeprefix("file://"))
    if serve:
        from bench.serve import serve as start

        if once:
            raise BadInput("--once looks from the terminal: leave out --serve")
        start(folder, sweep, console, host=host or "127.0.0.1", port=port or 0, pictures=pictures)
        return
    from bench.watch import watch as look

    if host is not None or port is not None:
        raise BadInput("--host and --port go with --serve")
    look(folder, sweep, console, once=once)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)
