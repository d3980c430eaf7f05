"""Commands that look closer: at a sweep's views before it runs, and at two configurations after it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli_data import DataRoot

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the commands to `bench`."""
    app.command()(views)


def views(
    sweep: Annotated[str, typer.Option("--sweep", help="A sweep's name, or the path of a TOML file.")],
    image: Annotated[list[Path] | None, typer.Option(help="A photograph to look at; may be repeated.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Or images of a dataset's training split; else of the sweep's own.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=20, help="How many images of the dataset.")] = 2,
    draws: Annotated[int, typer.Option(min=1, max=24, help="Random draws of each image at each value.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of images and of the draws.")] = 0,
    profile: Annotated[str | None, typer.Option(help="Which profile of the sweep; by default its first.")] = None,
    method: Annotated[str | None, typer.Option(help="Another method: a name, or a module path.")] = None,
    candidates: Annotated[
        str | None, typer.Option(help="Only these of the sweep's candidates, separated by commas.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set any field; may be repeated.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE.png", help="The picture's file; by default SWEEP-views.png.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Draw what a sweep's augmentations do over its search range, as a PNG, before anything is trained."""
    from bench.pictures.peek import peek
    from bench.request import requested_sweep

    loaded = requested_sweep(
        sweep, profile=profile, method=method, candidates=candidates, pretrain_on=dataset, settings=settings
    )
    done = peek(loaded, image or (), images=images, draws=draws, seed=seed, to=to, data_root=data_root)
    console = _console()
    for line in done:
        console.print(line, markup=False, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)
