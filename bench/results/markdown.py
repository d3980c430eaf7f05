"""A sweep's findings as Markdown."""

import re
from collections.abc import Sequence

from bench.results import wording
from bench.results.findings import Findings
from bench.results.frames import rows_of
from bench.results.tables import Entry, TextTable, tables
from bench.results.wording import visible

_MARKUP = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_[]|#~$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def escape(text: object) -> str:
    """`text` so that Markdown and the HTML made from it show it as it is, on one line, and link to nothing."""
    return visible(text).translate(_MARKUP).replace("://", "\\://").replace("www.", "www\\.")


def paragraph(text: object) -> str:
    """`text` at the start of a line, where some letters would open a list or underline a heading."""
    return re.sub(r"^(\s*)([-+=]|\d+(?=[.)]))", _guarded, escape(text))


def _guarded(match: re.Match[str]) -> str:
    return f"{match[2]}\\" if match[2].isdigit() else f"\\{match[2]}"


def markdown(found: Findings) -> str:
    """One sweep: its question, the answer, tables, notes, choices and failures."""
    lines = [found.title, wording.filter_line(found.filters)]
    parts = [f"## {escape(found.sweep)}", *(paragraph(line) for line in lines if line)]
    parts += [f"**{escape(line)}**" for line in wording.answers(found.gaps)[:1]]
    for table in tables(found):
        parts += [f"**{escape(table.title)}**", table_lines(table)]
    lines = wording.notes(found, "bold:") if found.standings else []
    lines += wording.search_lines(found.bests) + wording.trial_lines(found.counts, found.versions)
    parts += [paragraph(line) for line in lines]
    failed = [f"- {escape(line)}" for line in wording.failures(rows_of(found.failures))]
    parts += ["Failed trials:", "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def table_lines(table: TextTable) -> str:
    """A table; numbers are right-justified."""
    rule = ["---", *["---:"] * (len(table.heads) - 1)]
    rows = [[_cell(entry) for entry in row] for row in table.rows]
    return "\n".join(_line(row) for row in ([escape(head) for head in table.heads], rule, *rows))


def _cell(entry: Entry) -> str:
    if not entry.best:
        return escape(entry.text)
    value, space, rest = entry.text.partition(" ")
    return f"**{escape(value)}**{space}{escape(rest)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
