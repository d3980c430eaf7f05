"""Exports: golden bytes, the same bytes from the same ledger, hostile names as text in every format."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from bench.errors import UnknownName
from bench.records import digest
from bench.results import exports, latex, markdown
from bench.results.exports import FORMATS, columns_for, export
from bench.results.leaderboard import LEADERBOARD
from bench.results.ledger import Ledger
from bench.results.questions import sweep_records
from bench.results.report import render
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table

WHEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
RECORD = {"sweep_id": "0123456789abcdef", "name": "gamma", "title": "Does gamma help?", "profile": "small"}
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1)) *a* _b_ `c`",
    "[bold red]x[/]",
    "a|b\nc",
    "\x1b[31mred\x07 \u202egnp.exe\x9b",
    "=1+cmd|' /C calc'!A0",
    "+1",
    "@SUM(A1)",
    "100%_#$&~^{}\"'`\\input{/etc/passwd}",
    "1. see https://evil.example www.evil.example",
    "--- ***",
    "-2+3",
    "叶子",
]


def add(out: Path, name: str, seed: int, value: float, **more: Any) -> None:
    """Write a trial of two datasets, or a failed one."""
    place = {"sweep": "gamma", "sweep_id": "0123456789abcdef", "stage": "confirm", "role": "best"} | more.pop(
        "place", {}
    )
    membership = Membership(configuration=name, **place)
    facts: dict[str, Any] = {"method": "simclr", "encoder": "small", "status": "finished", "objective": 0.6}
    facts |= {"config": {"data": "d" * 8}, "pretrain_dataset": "leaves", "git_commit": "c" * 40, "git_dirty": False}
    facts |= {"versions": {"torch": "2.14.1", "bench": "0.1.0"}, "device": "cpu", "configuration_id": f"id {name}"}
    facts |= {"device_seconds": 48.0, "images_per_second": 1234.0, "peak_memory_bytes": 3 * 2**29}
    facts |= {"trial_id": digest([name, seed, place]), "seed": seed} | more
    rows = []
    if facts["status"] == "finished":
        for dataset, score in ((facts.pop("dataset", "leaves"), value), ("wings", value - 0.1)):
            at: Any = {"dataset": dataset, "protocol": "linear", "samples": 250, "dataset_fingerprint": "f" * 8}
            rows.append(
                Measurement(**at, split="test", metric="top1", value=score, headline=True, low=score, high=score)
            )
    table = rows_table(TrialFacts(membership=membership, **facts), rows)
    column = table.schema.get_field_index("recorded_at")
    table = table.set_column(column, table.schema.field(column), times(table.num_rows, table.schema.field(column).type))
    Ledger(out).write(table)


def times(count: int, kind: Any) -> Any:
    return pa.array([WHEN] * count, type=kind)


def fill(out: Path) -> Path:
    """A confirmed sweep with its record, one failed trial."""
    for seed, (best, plain) in enumerate([(0.71, 0.70), (0.73, 0.70), (0.72, 0.72)]):
        add(out, "best", seed, best)
        add(out, "without gamma", seed, plain, place={"role": "baseline"})
        add(out, "random_init", seed, 0.3 + 0.01 * seed, place={"role": "control"})
    add(out, "best", 7, 0, status="failed", error="TrialFailed: no", objective=None)
    (out / "sweeps").mkdir()
    (out / "sweeps" / "gamma-0123456789ab.json").write_text(json.dumps(RECORD))
    return out


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("out"))


def made(out: Path, kind: str, sweep: str | None = None) -> str:
    return export(Ledger(out).read().frame, sweep, kind, sweep_records(out)).decode()


MARKDOWN = """\
## gamma

Does gamma help?

**Over 2 datasets and 3 seeds (linear), best scores 1.3 points above 'without gamma' (95 % interval -2.5 to +5.1, \
p = 0.27): not separated.**

**linear, test score in %**

| configuration | seeds | rank | group | leaves (top-1) | wings (top-1) |
| --- | ---: | ---: | ---: | ---: | ---: |
| best | 3 | 1.0 | a | **72.0** \\[69.5, 74.5\\] | **62.0** \\[59.5, 64.5\\] |
| without gamma | 3 | 2.0 | a | 70.7= \\[67.8, 73.5\\] | 60.7= \\[57.8, 63.5\\] |
| random\\_init (control) | 3 |  |  | 31.0 \\[28.5, 33.5\\] | 21.0 \\[18.5, 23.5\\] |

**cost per trial**

| configuration | validation % | device time | images/s | memory |
| --- | ---: | ---: | ---: | ---: |
| best | 60.0 | 48 s | 1,234 | 1.5 GiB |
| without gamma | 60.0 | 48 s | 1,234 | 1.5 GiB |
| random\\_init (control) | 60.0 | 48 s | 1,234 | 1.5 GiB |

**best minus the others, paired over seeds, in points**

| other | protocol | difference | 95 % interval | p | p (Holm) | separated |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| without gamma | linear | +1.3 | \\[-2.5, +5.1\\] | 0.27 | 0.27 | no |
| random\\_init (control) | linear | +41.0 | \\[+38.5, +43.5\\] | &lt; 0.001 | &lt; 0.001 | yes |
"""

LATEX = r"""% gamma: made by bench report --format latex; needs \usepackage{booktabs}
\begin{table}
\centering
\caption{linear, test score in \%. Does gamma help? Over 2 datasets and 3 seeds (linear), best scores 1.3 points above \
'without gamma' (95 \% interval -2.5 to +5.1, p = 0.27): not separated.}
\begin{tabular}{lrrrrr}
\toprule
configuration & seeds & rank & group & leaves (top-1) & wings (top-1) \\
\midrule
best & 3 & 1.0 & a & \textbf{72.0} [69.5, 74.5] & \textbf{62.0} [59.5, 64.5] \\
without gamma & 3 & 2.0 & a & 70.7= [67.8, 73.5] & 60.7= [57.8, 63.5] \\
\addlinespace
random\_init (control) & 3 &  &  & 31.0 [28.5, 33.5] & 21.0 [18.5, 23.5] \\
\bottomrule
\end{tabular}
""".replace("\\\n'without", "'without")

CARD = """\
# Result card: gamma

## Question

Does gamma help?

Chosen on validation by linear, scored once on test.

## Finding

**Over 2 datasets and 3 seeds (linear), best scores 1.3 points above 'without gamma' (95 % interval -2.5 to +5.1, \
p = 0.27): not separated.**
"""

CARD_END = """\
## How to reproduce

```sh
bench run --sweep gamma --profile small
```

It asks the same if the sweep's id is again 0123456789abcdef (its whole definition: sweeps/gamma-0123456789ab.json \
beside the ledger; what was given by --set and the other options counts in it).

## What it stands on

| | |
| --- | --- |
| commit | cccccccccccccccccccccccccccccccccccccccc |
| packages | bench 0.1.0, torch 2.14.1 |
| devices | cpu |
| seeds | 0, 1, 2, 7 |
| pretrained on | leaves dddddddd |
| data: leaves | ffffffff |
| data: wings | ffffffff |
| last recorded | 2026-01-02 03:04 UTC |

## Caveats

- 3 seeds are few: a difference is separated only if it exceeds 2.5 standard deviations of the paired differences.
- 2 datasets give Friedman's test over 2 configurations no power: average ranks would have to differ by 1.39 of at \
most 1 (Nemenyi). They describe, and show no difference.
- 1 trial failed; bench report lists them.
- Trials: 9 finished, 0 pruned, 1 failed.
- Intervals over seeds hold the datasets and their test images fixed.
"""


def test_markdown_golden(out: Path):
    text = made(out, "md")
    assert text.startswith(MARKDOWN)
    assert text.rstrip().endswith("best, seed 7: TrialFailed: no")


def test_latex_golden(out: Path):
    assert made(out, "latex").startswith(LATEX)


def test_card_golden(out: Path):
    text = made(out, "card")
    assert text.startswith(CARD)
    assert text.endswith(CARD_END)


def test_json_has_the_diagram_and_what_was_published(out: Path):
    (tree,) = json.loads(made(out, "json"))
    (test,) = tree["rank_tests"]
    assert test["average_ranks"] == {"best": 1.0, "without gamma": 2.0}
    assert test["cliques"] == [["best", "without gamma"]]
    assert test["critical_difference"] == pytest.approx(1.386, abs=1e-3)
    assert "no power" in test["caveat"]
    assert tree["question"] == "Does gamma help?"
    assert tree["published"] is None
    assert tree["comparison"][0]["p_adjusted"] == tree["comparison"][0]["p_value"]


def test_parquet_has_the_documented_schema(out: Path):
    frame = Ledger(out).read().frame
    table = pq.read_table(io.BytesIO(export(frame, None, "parquet")))
    assert table.schema.equals(LEADERBOARD)
    page = (Path(__file__).parents[1] / "docs" / "LEADERBOARDS.md").read_text()
    documented: dict[str, str] = {}
    for names, kind in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\w+) \|", page, re.MULTILINE):
        documented |= dict.fromkeys(re.findall(r"`(\w+)`", names), kind)
    assert documented == {field.name: str(field.type) for field in LEADERBOARD}


CODE = """
import hashlib, sys
from pathlib import Path
from bench.results.exports import FORMATS, columns_for, export
from bench.results.ledger import Ledger
from bench.results.questions import sweep_records
out = Path(sys.argv[1])
for kind in FORMATS:
    data = export(Ledger(out).read(columns=columns_for(kind)).frame, None, kind, sweep_records(out))
    print(kind, hashlib.sha256(data).hexdigest())
"""


def test_the_same_ledger_gives_the_same_bytes_in_every_process(out: Path, tmp_path: Path):
    moved = tmp_path / "moved"
    (moved / "ledger").mkdir(parents=True)
    shutil.copytree(out / "sweeps", moved / "sweeps")
    for file in sorted((out / "ledger").iterdir(), reverse=True):
        shutil.copy(file, moved / "ledger")
    found = {
        subprocess.run(
            [sys.executable, "-c", CODE, str(folder)],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for folder, seed in ((out, "1"), (moved, "2"))
    }
    (text,) = found
    assert len(text.splitlines()) == len(FORMATS)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_order_of_the_rows_does_not_matter(out: Path, kind: str):
    frame = Ledger(out).read(columns=columns_for(kind)).frame
    first = export(frame, None, kind, sweep_records(out))
    assert export(frame.iloc[::-1], None, kind, sweep_records(out)) == first
    assert export(frame.sample(frac=1, random_state=1), None, kind, sweep_records(out)) == first


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger in which every name is hostile."""
    out = tmp_path_factory.mktemp("hostile")
    for name in HOSTILE:
        for seed in (0, 1, 2):
            place = {"sweep": name, "sweep_id": f"id {name}"}
            more: dict[str, Any] = {"method": name, "dataset": name, "pretrain_dataset": name, "device": name}
            add(out, name, seed, 0.5 + 0.01 * seed, place=place, **more)
            add(out, f"{name} 2", seed, 0.4 + 0.02 * seed, place=place | {"role": "control"}, **more)
        lost = {"status": "failed", "error": f"{name}: bad", "error_file": name, "objective": None}
        add(out, name, 9, 0, place=place, versions={name: name}, git_commit=name, **lost)
    return out


def records() -> dict[str, dict[str, Any]]:
    return {f"id {name}": {"title": name, "profile": name} for name in HOSTILE}


def visible(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def plain(text: str) -> str:
    return " ".join(visible(text).split())


@pytest.mark.parametrize("kind", ["md", "card"])
def test_hostile_names_are_text_in_markdown(hostile: Path, kind: str):
    data = export(Ledger(hostile).read().frame, None, kind, records()).decode()
    assert not [letter for letter in data if not letter.isprintable() and letter != "\n"]
    page = MarkdownIt("commonmark").enable("table")
    tokens = page.parse(data)
    inline = [child for token in tokens for child in token.children or []]
    kinds = {token.type for token in [*tokens, *inline]}
    assert not kinds & {"link_open", "image", "html_block", "html_inline", "code_inline", "s_open", "em_open", "hr"}
    assert {token.tag for token in tokens if token.type == "heading_open"} <= {"h1", "h2"}
    assert "ordered_list_open" not in kinds
    said = {plain("".join(c.content for c in token.children or [])) for token in tokens if token.type == "inline"}
    assert {plain(name) for name in HOSTILE} <= said
    widths = [line.replace("\\\\", "").replace("\\|", "").count("|") for line in data.splitlines() if line[:1] == "|"]
    assert set(widths) <= {3, 6, 7, 8}


COMMANDS = r"begin end centering caption toprule midrule bottomrule addlinespace textbf par smallskip footnotesize char"
COMMANDS += " textless textgreater textbar textbackslash textasciitilde textasciicircum textasciigrave"


def latex_text(source: str) -> str:
    """What a fragment sets, by the few rules of LaTeX that the export uses."""
    named = {"textless": "<", "textgreater": ">", "textbar": "|", "textbackslash": "\\", "textasciitilde": "~"}
    named |= {"textasciicircum": "^", "textasciigrave": "`"}
    text = re.sub(r"\{\\char34\}", '"', source)
    text = re.sub(r"\\(text\w+)\{\}", lambda match: f"\0{ord(named[match[1]])};", text)
    text = re.sub(r"\\([{}$&#%_])", lambda match: f"\0{ord(match[1])};", text)
    text = text.replace("{", "").replace("}", "")
    return re.sub("\0(\\d+);", lambda match: chr(int(match[1])), text)


def test_hostile_names_are_text_in_latex(hostile: Path):
    data = export(Ledger(hostile).read().frame, None, "latex", records()).decode()
    assert all(letter.isprintable() or letter == "\n" for letter in data)
    body = "\n".join(line for line in data.splitlines() if not line.startswith("% "))
    assert body.isascii()
    assert set(re.findall(r"\\([A-Za-z]+|.)", body)) <= {*COMMANDS.split(), *"\\{}$&#%_"}
    assert not re.search(r"(?<!\\)[%#~^_]", body)
    depth = 0
    for mark in re.findall(r"(?<!\\)(?:\\\\)*([{}])", body):
        depth += 1 if mark == "{" else -1
        assert depth >= 0
    assert depth == 0
    width = 0
    for line in body.splitlines():
        if line.startswith("\\begin{tabular}"):
            width = len(line.removeprefix("\\begin{tabular}{").removesuffix("}"))
        if line.endswith("\\\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == width - 1, line
            assert line[0] not in "[*"
    for name in filter(str.isascii, HOSTILE):
        assert any(latex_text(line).startswith(visible(name)) for line in body.splitlines()), name


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.isascii()])
def test_latex_escapes_can_be_read_back(name: str):
    assert latex_text(latex.escape(name)) == visible(name)


def test_letters_that_latex_lacks_are_written_as_code_points():
    assert latex.escape("é叶") == "é(U+53F6)"


def test_csv_runs_no_formula(hostile: Path):
    data = export(Ledger(hostile).read().frame, None, "csv").decode()
    head, *rows = csv.reader(io.StringIO(data))
    texts = [row[head.index(name)] for row in rows for name in ("sweep", "configuration", "method", "dataset")]
    assert not [text for text in texts if text.lstrip()[:1] in ("=", "+", "-", "@")]
    assert {f"'{name}" for name in ("=1+cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)")} <= set(texts)
    assert all(letter.isprintable() or letter == "\n" for letter in data)
    assert {len(row) for row in rows} == {len(head)}


def test_json_and_parquet_keep_names_as_they_are(hostile: Path):
    frame = Ledger(hostile).read().frame
    data = export(frame, None, "json", records())
    assert data.isascii()
    assert {tree["sweep"] for tree in json.loads(data)} == set(HOSTILE)
    assert {tree["question"] for tree in json.loads(data)} == set(HOSTILE)
    table = pq.read_table(io.BytesIO(export(frame, None, "parquet")))
    assert set(table["configuration"].to_pylist()) >= set(HOSTILE)


@pytest.mark.parametrize("width", [80, 140])
def test_hostile_names_are_text_in_the_terminal(hostile: Path, width: int):
    file = io.StringIO()
    frame = Ledger(hostile).read().frame
    Console(file=file, width=width, force_terminal=True, highlight=False).print(render(frame, None, (), records()))
    text = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())  # rich's own styles
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "[bold red]x[/]" in text
    assert "<script>alert(1)</script>" in text


def test_a_wrong_format_answers_with_the_nearest_right_one(out: Path):
    frame = Ledger(out).read().frame
    with pytest.raises(UnknownName, match="did you mean 'latex'"):
        export(frame, None, "latx")


def test_addresses_become_no_links():
    assert markdown.escape("https://a.example www.b.example") == "https\\://a.example www\\.b.example"


def test_paragraphs_open_no_lists():
    assert [markdown.paragraph(text) for text in ("- a", "1. a", "2) a", "+1", "= a", "plain")] == [
        "\\- a",
        "1\\. a",
        "2\\) a",
        "\\+1",
        "\\= a",
        "plain",
    ]


def test_a_broken_record_is_left_out(tmp_path: Path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "a.json").write_text("{")
    (tmp_path / "sweeps" / "b.json").write_text("[]")
    (tmp_path / "sweeps" / "c.json").write_text(json.dumps(RECORD))
    assert list(sweep_records(tmp_path)) == ["0123456789abcdef"]
    assert exports.FORMATS == FORMATS
    assert isinstance(Ledger(tmp_path).read().frame, pd.DataFrame)
