"""The commands of `bench data`: what there is, where it lies, how to get it, and whether it is whole."""

from typing import Annotated

import typer

app = typer.Typer(help="Datasets: list, show, fetch, check, pack, clean.", no_args_is_help=True)

DataRoot = Annotated[
    str | None,
    typer.Option(
        "--data-root", help="Folder or address where released datasets lie.", envvar="BENCH_DATA", metavar="FOLDER"
    ),
]
Name = Annotated[str, typer.Argument(help="A card's name or path, or a folder of images.")]


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A card's name or path.")],
    data_root: DataRoot = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the downloaded archives once they are unpacked.")
    ] = False,
) -> None:
    """Show a release's terms, download it, verify its checksum and unpack it; or say what to do by hand."""
    import time

    from rich.console import Console

    from bench.data.fetch import fetch as carry_out
    from bench.data.fetch import plan_fetch
    from bench.transfer_display import intention, outcome, terms, watching

    console, began = Console(highlight=False), time.monotonic()
    plan = plan_fetch(name, data_root)
    for line in [plan.settled] if plan.settled else [*terms(plan), *intention(plan)]:
        console.print(line, markup=False, soft_wrap=True)
    if plan.settled:
        return
    try:
        with watching(console) as watch:
            fetched = carry_out(plan, watch, keep_archives=keep_archives)
    except KeyboardInterrupt:
        console.print("interrupted: what has come is kept, and the same command goes on from there", style="yellow")
        raise typer.Exit(130) from None
    for line in outcome(plan, fetched, time.monotonic() - began):
        console.print(line, markup=False, soft_wrap=True)
