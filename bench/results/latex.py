"""A sweep's findings as LaTeX: booktabs tables that compile with pdfLaTeX, XeLaTeX and LuaLaTeX."""

import re
from collections.abc import Sequence

from bench.results import wording
from bench.results.findings import Findings
from bench.results.tables import Entry, TextTable, tables
from bench.results.wording import visible

_SPECIAL = {letter: f"\\{letter}" for letter in "{}$&#%_"}
_SPECIAL |= {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"{\char34}",
}
_LATIN = 0x17F  # the last letter of Latin Extended-A, which every LaTeX sets without further packages


def escape(text: object) -> str:
    """`text` so that LaTeX sets it as it is, on one line; a letter beyond Latin is written as its code point."""
    plain = "".join(map(_letter, visible(text)))
    return plain.replace("--", "-{}-").replace("--", "-{}-").replace("''", "'{}'")  # else ligatures: dashes, quotes


def _letter(letter: str) -> str:
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    return letter if ord(letter) < 0x80 or 0xA1 <= ord(letter) <= _LATIN else f"(U+{ord(letter):04X})"


def latex(found: Findings) -> str:
    """A table environment per table of the report, captioned; the preamble needs `booktabs` only."""
    lines = [f"% {visible(found.sweep)}: made by bench report --format latex; needs \\usepackage{{booktabs}}"]
    said = [found.title, wording.filter_line(found.filters), *wording.answers(found.gaps)[:1]]
    below = wording.notes(found, "bold:") if found.standings else []
    for index, table in enumerate(tables(found)):
        first = index == 0
        caption = " ".join([f"{table.title}.", *(line for line in said if line and first)])
        lines += _environment(table, caption, below if first else [])
    return "\n".join(lines) + "\n"


def _environment(table: TextTable, caption: str, below: Sequence[str]) -> list[str]:
    rows = list(map(_row, table.rows))
    first = min(table.controls, default=0)
    if first:  # controls stand below the others, apart
        rows.insert(first, r"\addlinespace")
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}",
        r"\toprule",
        _line([escape(head) for head in table.heads]),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\smallskip\footnotesize", *map(escape, below)] if below else []),
        r"\end{table}",
    ]


def _row(entries: Sequence[Entry]) -> str:
    """A row; the first cell is a name, the others hold numbers, whose minus is set as one."""
    name, *numbers = entries
    return _line([escape(name.text), *map(_number, numbers)])


def _number(entry: Entry) -> str:
    value, space, rest = entry.text.partition(" ") if entry.best else ("", "", entry.text)
    bold = rf"\textbf{{{escape(value)}}}" if entry.best else ""
    return bold + space + re.sub(r"(?<![\w-])-(?=\d)", "$-$", escape(rest))


def _line(cells: Sequence[str]) -> str:
    line = f"{' & '.join(cells)} \\\\"
    # After a rule or the end of a row these would be read as an option of it.
    return f"{{{line[0]}}}{line[1:]}" if line[0] in "[*" else line
