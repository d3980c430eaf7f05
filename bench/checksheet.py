"""What a check found as people and programs read it: a summary, lists, and a file with a row for each finding."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.data.check import FAULTS, LONG, ODD, TINY, Finding, Findings
from bench.data.near import BITS
from bench.datasheet import say, visible
from bench.errors import BadInput, suggestion

FORMATS = (".csv", ".json")
FEW = 5  # oddities of a kind that are listed on the screen
_WORDS = {
    "counts": "counts other than the card's",
    "classes": "classes other than the card's, or without train images",
    "unreadable": "unreadable",
    "missing": "missing: listed, and not there",
    "duplicate": "further copies within a split (same bytes)",
    "shared": "in two splits (same bytes)",
    "labels": "same bytes under different classes",
    "near": "near duplicates across splits",
    "unlisted": "not listed by any table, so left out",
    "tiny": f"short side under {TINY} px",
    "long": f"longer than {LONG}:1",
    "gray": "gray only",
}
_ACROSS = ("shared", "near")
_SIGNS = {"near": "~"}  # between two images; else =


def summary(findings: Findings) -> RenderableType:
    """The dataset, its images per split, and how many there are of each kind of finding."""
    total = sum(tally.listed for tally in findings.tallies)
    head = f"{findings.name}: {total:,} images, {findings.classes} classes, {findings.location}"
    return Group(say(head, "bold"), Text(), _tallies(findings), Text(), _kinds(findings))


def lists(findings: Findings) -> Iterator[Text]:
    """Every finding, a line each under the heading of its kind; of oddities the first few."""
    for kind in FAULTS + ODD:
        for split, members in _groups(findings, kind).items():
            yield Text(f"\n{_heading(findings, kind, split)}: {len(members):,}", style=_style(kind))
            shown = members[:FEW] if kind in ODD else members
            yield from (Text(_line(finding)) for finding in shown)
            if len(shown) < len(members):
                yield Text(f"  and {len(members) - len(shown):,} more; --to FILE.csv names them all", style="dim")


def verdict(findings: Findings) -> Text:
    """The last line."""
    if findings.faults:
        return Text(f"\n{findings.faults:,} finding{'' if findings.faults == 1 else 's'}", style="red")
    return Text("\nnothing wrong was found", style="green")


def require_format(to: Path) -> None:
    """Raise BadInput, before anything is read, for a file that could not be written."""
    if to.suffix not in FORMATS:
        raise BadInput(f"--to {to}: its name must end in .csv or .json{suggestion(to.suffix, FORMATS)}")
    if not to.absolute().parent.is_dir():
        raise BadInput(f"--to {to}: there is no folder {to.absolute().parent}")


def export(findings: Findings, to: Path) -> None:
    """Write a row per finding, oddities too: kind, file, other, split, detail."""
    if to.suffix == ".json":
        text = json.dumps([finding._asdict() for finding in findings.found], indent=1) + "\n"
    else:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(Finding._fields)
        writer.writerows(findings.found)
        text = stream.getvalue()
    to.write_text(text, encoding="utf-8")


def _tallies(findings: Findings) -> Table:
    rows = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column("images", style="cyan")
    carded = any(tally.card is not None for tally in findings.tallies)
    for column in (*(["card"] if carded else []), "listed", "usable"):
        rows.add_column(column, justify="right")
    for tally in findings.tallies:
        said = [f"{tally.card:,}" if tally.card is not None else "-"] if carded else []
        rows.add_row(tally.split, *said, f"{tally.listed:,}", f"{tally.usable:,}")
    return rows


def _kinds(findings: Findings) -> Table:
    rows = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column("found")
    rows.add_column("number", justify="right")
    for kind in FAULTS + ODD:
        if kind == "near" and findings.distance is None:
            continue
        for split, members in (_groups(findings, kind) or {"": []}).items():
            rows.add_row(_heading(findings, kind, split), f"{len(members):,}", style=_style(kind) if members else "dim")
    return rows


def _heading(findings: Findings, kind: str, split: str) -> str:
    within = f", within {findings.distance} of {BITS} bits" if kind == "near" else ""
    odd = " (odd, no fault)" if kind in ODD else ""
    return f"{_WORDS[kind]}{within}{f', {split}' if split else ''}{odd}"


def _style(kind: str) -> str:
    return "yellow" if kind in ODD else "red"


def _groups(findings: Findings, kind: str) -> dict[str, list[Finding]]:
    """The findings of a kind under the splits that they concern, where those make the difference; else under ""."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings.of(kind):
        groups.setdefault(finding.split if kind in _ACROSS else "", []).append(finding)
    return dict(sorted(groups.items()))


def _line(finding: Finding) -> str:
    """`FILE = OTHER (SPLIT): DETAIL`, as far as there is any."""
    pair = f"{_SIGNS.get(finding.kind, '=')} {visible(finding.other)}" if finding.other else ""
    split = f"({finding.split})" if finding.split and finding.kind not in _ACROSS else ""
    head = " ".join(filter(None, (visible(finding.file), pair, split)))
    return "  " + ": ".join(filter(None, (head, visible(finding.detail))))
