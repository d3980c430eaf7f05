"""The command line. Each command imports what it needs when it runs, so that `bench --help` is quick.

Exit codes: 0 done, 1 some trials failed, 2 wrong usage or unusable input, 130 interrupted.
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench import cli_cluster, cli_data, cli_look, cli_watch
from bench.cli_data import DataRoot
from bench.errors import BenchError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.plan import Plan
    from bench.scheduling.agenda import Agenda
    from bench.sweep import Sweep

FAILED, WRONG, INTERRUPTED = 1, 2, 130
BROKEN_PIPE = 141

app = typer.Typer(
    help="Which self-supervised pretext task works on fine-grained images? Sweeps, probes, honest leaderboards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cli_data.app, name="data")

Out = Annotated[
    str, typer.Option("--out", help="Folder, or s3://... address, of everything a run makes.", envvar="BENCH_OUT")
]
_MANY = "; may be repeated, or separated by commas."
SweepName = Annotated[str, typer.Option("--sweep", help="A sweep's name, or the path of a TOML file.")]


@app.command()
def run(
    sweep: SweepName,
    profile: Annotated[str | None, typer.Option(help="Which profile of the sweep; by default its first.")] = None,
    method: Annotated[str | None, typer.Option(help="Another method: a name, or a module path.")] = None,
    candidates: Annotated[
        str | None, typer.Option(help="Only these of the sweep's candidates, separated by commas.")
    ] = None,
    pretrain_on: Annotated[str | None, typer.Option(help="Dataset to pretrain on: a card, or a folder.")] = None,
    evaluate_on: Annotated[str | None, typer.Option(help="Datasets to evaluate on, separated by commas.")] = None,
    trials: Annotated[int | None, typer.Option(help="How many configurations of each candidate are drawn.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pretraining images.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that train one encoder together.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Set any field; may be repeated.")
    ] = None,
    data_root: DataRoot = None,
    out: Out = "results",
    address: Annotated[str | None, typer.Option(help="A Ray cluster; else RAY_ADDRESS, else a local Ray.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPU cores that a local Ray may use; else all.")] = None,
    log_to: Annotated[
        str | None, typer.Option("--log-to", help="Curves beside TensorBoard's: wandb, mlflow, or both with a comma.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and start nothing.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run everything again, also what is finished.")] = False,
) -> None:
    """Run a sweep: search on validation, then confirm the best on several seeds."""
    from bench.request import requested_sweep
    from bench.tracked import tracked

    trackers = tracked(log_to)
    loaded = requested_sweep(
        sweep,
        profile=profile,
        method=method,
        candidates=candidates,
        pretrain_on=pretrain_on,
        evaluate_on=evaluate_on,
        trials=trials,
        epochs=epochs,
        workers=workers,
        settings=settings,
    )
    if dry_run:
        from bench.plan import local_hardware

        _show_plan(_plan(loaded, out, data_root, _console()).on(local_hardware()))
        return
    plan = _prepared(loaded, out, data_root, _console())
    _end(_run(plan, address, cpus, trackers, force=force, retry_failed=retry_failed), out)


@app.command()
def report(
    out: Out = "results",
    sweep: Annotated[str | None, typer.Option("--sweep", help="One sweep; else all.")] = None,
    form: Annotated[
        str, typer.Option("--format", help="terminal, md, latex, csv, json, card, or parquet (which needs --to).")
    ] = "terminal",
    to: Annotated[Path | None, typer.Option("--to", help="Write to this file instead of the screen.")] = None,
    card: Annotated[Path | None, typer.Option("--card", help="Write the result card (Markdown) to this file.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help=f"Only these datasets{_MANY}")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"Only these methods, and all controls{_MANY}")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help=f"Only these, such as knn or 'knn k=20'{_MANY}")] = None,
    metric: Annotated[list[str] | None, typer.Option(help=f"Instead of each dataset's headline metric{_MANY}")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="confirm, or search: what it chose on validation.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with figures and pictures: a file, or a folder.")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Whether the page has pictures.")] = True,
) -> None:
    """Show the leaderboards: configurations chosen on validation, ranked by their test scores."""
    from bench import mirror
    from bench.results.exports import columns_for, export
    from bench.results.questions import sweep_records
    from bench.results.reading import read_shown
    from bench.results.report import render
    from bench.results.selection import filters_for

    if card and (form != "terminal" or to):
        raise BenchError("--card FILE writes the card: leave out --format and --to")
    if html and (form != "terminal" or to or card):
        raise BenchError("--html FILE_OR_FOLDER writes the page: leave out --format, --to and --card")
    form, to = ("card", card) if card else (form, to)
    folder = mirror.opened(out, "ledger", "sweeps")
    searched = any("search" in each for each in stage or ())
    reading = read_shown(folder, sweep, columns_for(form), every=html is not None, search=searched)
    if reading.frame.empty and not reading.problems:
        raise BenchError(_nothing(out, folder, sweep))
    filters = filters_for(reading.frame, dataset=dataset, method=method, protocol=protocol, metric=metric, stage=stage)
    records = sweep_records(folder)
    if html:
        from bench.page.render import write_page

        path = write_page(html, reading, sweep, out=folder, records=records, filters=filters, pictures=pictures)
        _console().print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", markup=False, soft_wrap=True)
        return
    if form == "terminal":
        _console(to).print(render(reading.frame, sweep, reading.problems, records, filters))
        return
    data = export(reading.frame, sweep, form, records, filters)
    if to:
        to.write_bytes(data)
    elif form == "parquet":
        raise BenchError("--format parquet is no text: name a file with --to FILE.parquet")
    else:
        sys.stdout.write(data.decode())


@app.command()
def compact(out: Out = "results") -> None:
    """Merge the results' many small files into few large ones; safe at any time, also beside a run."""
    from bench import mirror
    from bench.results.compact import compact as merge
    from bench.results.ledger import Ledger

    done = merge(Ledger(mirror.opened(out, "ledger")))
    console = _console()
    kept = f"{done.records:,} records are in {mirror.address(done.path)}" if done.path else f"{out}: nothing to merge"
    console.print(f"{kept}; {done.cleared:,} files cleared away", markup=False, soft_wrap=True)
    for problem in done.problems:
        console.print(f"left as it is: {problem}", style="yellow", markup=False, soft_wrap=True)


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="methods, datasets, sweeps, encoders or protocols")] = None,
) -> None:
    """List methods, datasets, sweeps, encoders and protocols, one line each."""
    from bench.summaries import table

    _console().print(table(kind))


@app.command()
def show(name: Annotated[str, typer.Argument(help="A method, dataset, sweep or encoder.")]) -> None:
    """Show one method, dataset, sweep or encoder in full."""
    from bench.catalogue import details

    _console().print(details(name))


cli_watch.register(app)
cli_look.register(app)
cli_cluster.register(app)


def main() -> None:
    """Run the command line; a user's mistake is one message, not a traceback."""
    try:
        app(standalone_mode=True)
    except BenchError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of a pipe (head, less) has left. Nothing more can be written; not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except OSError as error:  # a file or folder that cannot be read or written
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")


def _run(
    plan: "Plan", address: str | None, cpus: int | None, log_to: tuple[str, ...], *, force: bool, retry_failed: bool
) -> "Agenda":
    from bench.live import telling
    from bench.plan import local_hardware
    from bench.progress import Board, show
    from bench.scheduling import events
    from bench.scheduling.agenda import Agenda
    from bench.scheduling.cluster import connect
    from bench.scheduling.run import run_agenda

    console = _console()
    address = address or os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        cluster = stack.enter_context(connect(address)) if address else None
        plan = plan.on(cluster.hardware if cluster else local_hardware())
        console.print(_headline(plan))
        board = Board(plan)
        stack.enter_context(events.listening(board))
        stack.enter_context(show(board, console))
        stack.enter_context(telling(plan.out, board.snapshot))
        agenda = Agenda(plan, force=force, retry_failed=retry_failed)
        stack.callback(agenda.close)
        if not agenda.is_done():  # else no Ray is needed
            run_agenda(agenda, cluster or stack.enter_context(connect(None, cpus=cpus)), log_to)
        board.over = agenda.is_done() and not agenda.interrupted
    return agenda


def _plan(sweep: "Sweep", out: str, data_root: str | None, console: "Console") -> "Plan":
    from bench.cache import cache_folder
    from bench.plan import make_plan

    with console.status("reading datasets"):
        return make_plan(sweep, out=out, cache=cache_folder(), data_root=data_root)


def _prepared(sweep: "Sweep", out: str, data_root: str | None, console: "Console") -> "Plan":
    """The plan, with its datasets packed and found usable before anything starts."""
    from bench.prepare import pack_all
    from bench.progress import packing

    plan = _plan(sweep, out, data_root, console)
    for pack in pack_all(plan, lambda name: packing(console, name)):
        for skipped in pack.skipped[:SHOWN]:
            console.print(f"{pack.name}: skipped {skipped.file}: {skipped.reason}", style="yellow", markup=False)
        if len(pack.skipped) > SHOWN:
            console.print(f"{pack.name}: {len(pack.skipped)} files skipped in all", style="yellow", markup=False)
    return plan


SHOWN = 5


def _headline(plan: "Plan") -> str:
    from rich.markup import escape

    sweep = plan.sweep
    names = ", ".join(sweep.candidates)
    return (
        f"[bold]{escape(sweep.title)}[/]\n"
        f"sweep {escape(sweep.name)}, profile {escape(sweep.profile)}: {escape(names)} on "
        f"{escape(plan.pretrain.name)}, {escape(sweep.pretrain.backbone)} at {sweep.pretrain.image_size} px, "
        f"{sweep.pretrain.epochs} epochs, {sum(map(sweep.draws, sweep.candidates))} trials, "
        f"{'GPU' if plan.gpus else 'CPU'}"
    )


def _show_plan(plan: "Plan") -> None:
    from bench.forecast import forecast

    _console().print(forecast(plan))


def _end(agenda: "Agenda", out: str) -> None:
    from bench.storage import join

    console, tally = _console(), agenda.tally
    console.print(
        f"{tally.ran} trials ran, {tally.pruned} pruned, {tally.reused} known already, {len(tally.failures)} failed; "
        f"everything is under {out}",
        highlight=False,
        markup=False,
    )
    for note in tally.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    for error, failures in tally.reasons():
        file, more = failures[0].file, f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        where = f" (traceback: {join(out, file)})" if file else ""
        console.print(f"failed: {failures[0].label}{more}: {error}{where}", style="red", highlight=False, markup=False)
    if agenda.interrupted or not agenda.is_done():
        console.print("interrupted: the same command goes on from here", style="yellow")
        raise typer.Exit(INTERRUPTED)
    if tally.failures:
        raise typer.Exit(FAILED)


def _nothing(out: str, folder: Path, sweep: str | None) -> str:
    from bench.results.ledger import Ledger

    if sweep is None:
        return f"{out}: no results yet; `bench run --sweep simclr_gamma --out {out}` makes some"
    from bench.errors import suggestion

    known = Ledger(folder).read(columns=["sweep"], depth="first").frame["sweep"].unique()
    return f"{out}: no results of sweep {sweep!r}{suggestion(sweep, known)}"


def _console(to: Path | None = None) -> "Console":
    from rich.console import Console

    if to:
        return Console(file=to.open("w", encoding="utf-8"), width=140, highlight=False)
    return Console(highlight=False)


def _fail(message: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(f"error: {message}", style="red", markup=False, soft_wrap=True)
    sys.exit(WRONG)
