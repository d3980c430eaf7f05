"""The result card of a sweep: what was asked, what was found, how to reproduce it, what it stands on."""

import json
import shlex
from typing import Any

import pandas as pd

from bench.results import wording
from bench.results.findings import Findings
from bench.results.markdown import escape, paragraph, table_lines
from bench.results.tables import tables
from bench.results.wording import visible


def card(found: Findings) -> str:
    """One sweep's card in Markdown; the ledger frame needs the columns `PROVENANCE` beside `COLUMNS`."""
    sections = {
        "Question": _question(found),
        "Finding": _finding(found),
        "How to reproduce": _reproduce(found),
        "What it stands on": _basis(found),
        "Caveats": _caveats(found),
    }
    parts = [f"# Result card: {escape(found.sweep)}"]
    for title, lines in sections.items():
        parts += [f"## {title}", *lines]
    return "\n\n".join(parts) + "\n"


def _question(found: Findings) -> list[str]:
    lines = [paragraph(found.title or "The run kept no question beside its results.")]
    protocol = f"Chosen on validation by {found.selection.objective}, scored once on test."
    return [*lines, protocol, *(escape(line) for line in (wording.filter_line(found.filters),) if line)]


def _finding(found: Findings) -> list[str]:
    answers = wording.answers(found.gaps) or ["There is nothing to compare yet."]
    parts = [f"**{escape(answers[0])}**"]
    for table in tables(found):
        parts += [f"**{escape(table.title)}**", table_lines(table)]
    notes = wording.notes(found, "bold:")[:1] if found.standings else []
    return parts + [escape(line) for line in notes + wording.search_lines(found.bests)]


def _reproduce(found: Findings) -> list[str]:
    """One command, and what tells that it asked the same."""
    record, rows = found.record, found.selection.rows
    profile = ["--profile", str(record["profile"])] if record.get("profile") not in (None, "default") else []
    command = shlex.join(["bench", "run", "--sweep", visible(found.sweep), *map(visible, profile)])
    fence = "`" * max(3, 1 + _longest_run(command))
    sweep_id = str(rows["sweep_id"].iloc[0])
    same = (
        f"It asks the same if the sweep's id is again {visible(sweep_id)} "
        f"(its whole definition: sweeps/{visible(found.sweep)}-{visible(sweep_id)[:12]}.json beside the ledger; "
        "what was given by --set and the other options counts in it)."
    )
    return [f"{fence}sh\n{command}\n{fence}", escape(same)]


def _basis(found: Findings) -> list[str]:
    """Commit, packages, devices and data, as the ledger's rows say."""
    rows = found.selection.rows
    facts = [
        ("commit", _commits(rows)),
        ("packages", _versions(rows)),
        ("devices", _distinct(rows["device"])),
        ("seeds", ", ".join(map(str, sorted(found.selection.shown["seed"].dropna().unique())))),
        ("pretrained on", _pretraining(rows)),
        *((f"data: {visible(name)}", print_) for name, print_ in _fingerprints(rows)),
        ("last recorded", f"{rows['recorded_at'].max():%Y-%m-%d %H:%M} UTC"),
    ]
    lines = ["| | |", "| --- | --- |", *(f"| {escape(name)} | {escape(value)} |" for name, value in facts if value)]
    return ["\n".join(lines)]


def _caveats(found: Findings) -> list[str]:
    """What limits the finding, as a list."""
    board, rows = found.board, found.selection.rows
    lines = wording.notes(found, "bold:")[1:] if found.standings else ["No finished trial has a test score yet."]
    if len(board) and (board["stage"] == "search").all():
        lines.append("Nothing here is confirmed: one search trial of each candidate.")
    if rows["git_dirty"].fillna(False).any():
        lines.append("Some trials ran on a working tree that differed from its commit.")
    if len(found.failures):
        lines.append(f"{wording.count(len(found.failures), 'trial')} failed; bench report lists them.")
    if len(board) and board["value"].isna().any():
        lines.append("Some configurations lack scores that others have; they are not ranked.")
    lines += wording.trial_lines(found.counts, found.versions)
    lines.append("Intervals over seeds hold the datasets and their test images fixed.")
    return ["\n".join(f"- {escape(line)}" for line in lines)]


def _commits(rows: pd.DataFrame) -> str:
    pairs = rows[["git_commit", "git_dirty"]].dropna(subset="git_commit").drop_duplicates()
    shown = {f"{commit}{' (dirty)' if dirty is True else ''}" for commit, dirty in pairs.astype(object).to_numpy()}
    return ", ".join(sorted(shown)) or "not recorded"


def _versions(rows: pd.DataFrame) -> str:
    """Each package with its version, or versions where trials differ."""
    found: dict[str, set[str]] = {}
    for text in rows["versions"].dropna().unique():
        for name, version in json.loads(str(text)).items():
            found.setdefault(str(name), set()).add(str(version))
    return ", ".join(f"{name} {' and '.join(sorted(found[name]))}" for name in sorted(found))


def _pretraining(rows: pd.DataFrame) -> str:
    """Datasets pretrained on, with the fingerprint that the trials' configurations name."""
    pairs = rows[["pretrain_dataset", "config"]].dropna().drop_duplicates()
    data = {(str(name), _fingerprint(text)) for name, text in pairs.astype(object).to_numpy()}
    return ", ".join(f"{name} {fingerprint}".strip() for name, fingerprint in sorted(data))


def _fingerprint(config: Any) -> str:
    return str(json.loads(str(config)).get("data", ""))


def _fingerprints(rows: pd.DataFrame) -> list[tuple[str, str]]:
    pairs = rows[["dataset", "dataset_fingerprint"]].dropna().drop_duplicates().astype(str).to_numpy().tolist()
    return sorted((name, fingerprint) for name, fingerprint in pairs)


def _distinct(column: pd.Series) -> str:
    return ", ".join(sorted(map(str, column.dropna().unique())))


def _longest_run(text: str) -> int:
    """The longest run of backticks."""
    longest = run = 0
    for letter in text:
        run = run + 1 if letter == "`" else 0
        longest = max(longest, run)
    return longest
