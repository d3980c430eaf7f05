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
