"""Leaderboards chosen on validation, honest comparisons, and reports that read well and hold hostile names."""

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bench.errors import UnknownName
from bench.records import digest
from bench.results import wording
from bench.results.comparisons import COMPARISON, comparison
from bench.results.exports import FORMATS, export
from bench.results.leaderboard import LEADERBOARD, leaderboard
from bench.results.ledger import Ledger
from bench.results.markdown import escape
from bench.results.report import render
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table
from bench.results.selection import COLUMNS, Filters, count_trials, failed_trials, of_sweep, search_bests, sweeps

Scores = Mapping[Any, float]  # test top-1 by dataset, or by (dataset, protocol, variant)


class Book:
    """Writes synthetic trials and reads the ledger back."""

    def __init__(self, out: Path) -> None:
        self.ledger = Ledger(out)

    @property
    def frame(self) -> pd.DataFrame:
        frame, problems = self.ledger.read()
        assert problems == []
        return frame

    def add(self, name: str | None, seed: int, scores: Scores, **more: Any) -> str:
        """One trial; without a name a draw of the candidate "best". Validation scores are 1 - test: misleading."""
        place = {key: more.pop(key) for key in ("draw", "swept", "role") if key in more}
        sweep, version = more.pop("sweep", "gamma"), more.pop("sweep_id", "v1")
        stage: Any = more.pop("stage", "confirm" if name else "search")
        more.setdefault("configuration_id", f"id of {name}")
        membership = Membership(sweep=sweep, sweep_id=version, stage=stage, configuration=name or "best", **place)
        identity = [name, seed, place.get("draw"), more["configuration_id"], version]
        values: dict[str, Any] = {"method": "simclr", "encoder": "small", "status": "finished", "config": {}}
        values |= {"objective": 0.6, "device_seconds": 48.0, "images_per_second": 1234.0, "trial_id": digest(identity)}
        facts = TrialFacts(membership=membership, seed=seed, **values | more)
        rows = [row for place, value in scores.items() for row in self.rows(place, value)]
        self.ledger.write(rows_table(facts, rows))
        return facts.trial_id

    @staticmethod
    def rows(place: Any, value: float) -> list[Measurement]:
        dataset, protocol, variant = (place, "linear", "") if isinstance(place, str) else place
        at: Any = {"dataset": dataset, "protocol": protocol, "variant": variant, "samples": 250}
        return [
            Measurement(**at, split="val", metric="top1", value=1 - value, headline=True),
            Measurement(
                **at, split="test", metric="top1", value=value, headline=True, low=value - 0.03, high=value + 0.03
            ),
            Measurement(**at, split="test", metric="macro_f1", value=value / 2),
        ]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


@pytest.fixture
def full(book: Book) -> Book:
    """A whole sweep, to add to."""
    return fill(book)


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The frame of a whole sweep."""
    return fill(Book(tmp_path_factory.mktemp("out"))).frame


def fill(book: Book) -> Book:
    """Write a search with pruned and failed trials, then best, baseline and control on three seeds."""
    for draw, objective in enumerate([0.55, 0.62, 0.58]):
        swept = {"gamma.low": 0.3 + 0.1 * draw, "gamma.both": draw == 1}
        book.add(None, 0, {"leaves": 0.6}, draw=draw, swept=swept, objective=objective, configuration_id=f"c{draw}")
    book.add(None, 0, {}, draw=3, status="pruned", configuration_id="c3")
    lost = {"status": "failed", "error": "TrialFailed: the loss is not finite", "error_file": "errors/x.txt"}
    book.add(None, 0, {}, draw=4, configuration_id="c4", objective=None, **lost)
    knn = ("leaves", "knn", "k=20")
    for seed, (best, plain) in enumerate([(0.71, 0.70), (0.73, 0.70), (0.72, 0.72)]):
        book.add("best", seed, {"leaves": best, "wings": best - 0.1, knn: best - 0.2}, configuration_id="c1")
        book.add("without gamma", seed, {"leaves": plain, "wings": plain - 0.1, knn: plain - 0.2})
        book.add("random-init", seed, {"leaves": 0.3, "wings": 0.31, knn: 0.2}, role="control", method="random")
    return book


def shown(frame: pd.DataFrame, width: int = 100, sweep: str | None = None, problems: tuple[str, ...] = ()) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False, legacy_windows=False).print(render(frame, sweep, problems))
    return file.getvalue()


def test_a_search_is_never_judged_by_its_test_scores(book: Book):
    book.add(None, 0, {"leaves": 0.99}, draw=0, objective=0.50, configuration_id="lucky on test")
    book.add(None, 0, {"leaves": 0.70}, draw=1, objective=0.60, configuration_id="best on validation")
    book.add(None, 0, {"leaves": 0.80}, draw=2, objective=None, configuration_id="without an objective")
    board = leaderboard(book.frame, "gamma")
    assert board["configuration_id"].tolist() == ["best on validation"]
    assert board["value"].tolist() == [0.70]
    assert board["configuration"].tolist() == ["best"]
    for kind in ("md", "csv", "json"):
        assert b"99.0" not in export(book.frame, "gamma", kind)
        assert b"0.99" not in export(book.frame, "gamma", kind)
    text = shown(book.frame)
    assert "99.0" not in text
    assert "Nothing is confirmed yet" in text


def test_test_scores_do_not_change_the_choice(book: Book, tmp_path: Path):
    poisoned = Book(tmp_path / "poisoned")
    for draw, objective in enumerate([0.5, 0.7, 0.6]):
        book.add(None, 0, {"leaves": 0.8}, draw=draw, objective=objective, configuration_id=f"c{draw}")
        poisoned.add(None, 0, {"leaves": 0.1 * draw}, draw=draw, objective=objective, configuration_id=f"c{draw}")
    assert search_bests(book.frame, "gamma") == search_bests(poisoned.frame, "gamma")


def test_search_best_carries_its_swept_values(frame: pd.DataFrame):
    (best,) = search_bests(frame, "gamma")
    assert (best.candidate, best.configuration_id, best.draw, best.objective) == ("best", "c1", 1, 0.62)
    assert best.swept == {"gamma.low": 0.4, "gamma.both": True}
    assert wording.search_lines([best]) == [
        "Search chose for best: gamma.both = true, gamma.low = 0.4 (draw 1, validation 62.0 %)."
    ]


def test_leaderboard_has_the_stated_columns_and_values(frame: pd.DataFrame):
    board = leaderboard(frame, "gamma")
    assert board.columns.tolist() == LEADERBOARD.names
    assert str(board["seeds"].dtype) == "Int64"
    assert str(board["tie"].dtype) == "boolean"
    linear = board[(board["protocol"] == "linear") & (board["dataset"] == "leaves")].set_index("configuration")
    assert linear.index.tolist() == ["best", "without gamma", "random-init"]
    best = linear.loc["best"]
    assert best["value"] == pytest.approx(0.72)
    # 0.71, 0.72, 0.73: standard error 0.01 / sqrt(3), t(0.975, 2) = 4.302653
    assert best["high"] - best["value"] == pytest.approx(4.302653 * 0.01 / math.sqrt(3), abs=1e-8)
    assert (best["seeds"], best["samples"], best["interval"], best["metric"]) == (3, 250, "t over 3 seeds", "top1")
    assert best["objective"] == pytest.approx(0.6)
    assert linear["rank"].tolist()[:2] == [1.0, 2.0]
    assert linear["best"].tolist() == [True, False, False]
    assert linear["tie"].tolist()[:2] == [True, True]
    assert set(board["stage"]) == {"confirm"}


def test_controls_are_shown_and_not_ranked(full: Book):
    full.add("supervised", 0, {"leaves": 0.95, "wings": 0.95}, role="control", method="supervised")
    board = leaderboard(full.frame, "gamma")
    controls = board[board["role"] == "control"]
    assert set(controls["configuration"]) == {"random-init", "supervised"}
    assert controls["rank"].isna().all()
    assert not controls["best"].any()
    assert board.loc[board["configuration"] == "best", "best"].all()


def test_one_seed_shows_the_bootstrap_interval_and_no_tie(book: Book):
    book.add("best", 0, {"leaves": 0.7})
    book.add("plain", 0, {"leaves": 0.6})
    board = leaderboard(book.frame, "gamma").set_index("configuration")
    assert board.loc["best", ["value", "low", "high"]].tolist() == pytest.approx([0.7, 0.67, 0.73])
    assert board.loc["best", "interval"] == "one seed: bootstrap over test samples"
    assert pd.isna(board.loc["plain", "tie"])
    (answer,) = wording.answers(comparison(book.frame, "gamma"))
    assert answer == (
        "Over 1 dataset and 1 seed (linear), best scores 10.0 points above 'plain'; "
        "one seed gives no interval, so nothing is settled."
    )


def test_separated_configurations_are_no_ties(book: Book):
    for seed, gap in enumerate([0.100, 0.104, 0.098]):
        book.add("best", seed, {"leaves": 0.7 + 0.02 * seed})
        book.add("plain", seed, {"leaves": 0.7 + 0.02 * seed - gap})
    board = leaderboard(book.frame, "gamma").set_index("configuration")
    assert board["tie"].tolist() == [True, False]
    (answer,) = wording.answers(comparison(book.frame, "gamma"))
    assert "best scores 10.1 points above 'plain' (95 % interval +9.3 to +10.8, p < 0.001): separated." in answer


def test_a_partial_row_stays_blank_and_unranked(full: Book):
    full.add("half done", 0, {"leaves": 0.99})
    board = leaderboard(full.frame, "gamma")
    half = board[(board["configuration"] == "half done") & (board["protocol"] == "linear")].set_index("dataset")
    assert half.loc["leaves", "value"] == 0.99
    assert pd.isna(half.loc["wings", "value"])
    assert half.loc["wings", "seeds"] == 0
    assert half["rank"].isna().all()
    line = next(line for line in shown(full.frame, 140).splitlines() if line.startswith("half done"))
    assert line.split()[:7] == ["half", "done", "1", "99.0*", "[96.0,", "102.0]", "60.0"]  # and its cost


def test_a_configuration_whose_trials_all_failed_is_a_blank_row(full: Book):
    full.add("broken", 0, {}, status="failed", error="RuntimeError: out of memory")
    board = leaderboard(full.frame, "gamma")
    assert board.loc[board["configuration"] == "broken", "value"].isna().all()
    assert "broken" in shown(full.frame)
    assert "broken, seed 0: RuntimeError: out of memory" in shown(full.frame)


def test_another_metric_can_be_asked_for(frame: pd.DataFrame):
    board = leaderboard(frame, "gamma", Filters(metrics=("macro_f1",)))
    top = board[(board["configuration"] == "best") & (board["dataset"] == "leaves")].iloc[0]
    assert (top["metric"], top["value"]) == ("macro_f1", pytest.approx(0.36))
    assert leaderboard(frame, "gamma", Filters(metrics=("none",))).empty


def test_protocols_are_in_order(book: Book):
    places = [("leaves", "knn", "k=200"), ("leaves", "knn", "k=20"), ("leaves", "linear", "")]
    book.add("best", 0, dict.fromkeys(places, 0.5))
    board = leaderboard(book.frame, "gamma")
    assert board["protocol"].str.cat(board["variant"]).tolist() == ["linear", "knnk=20", "knnk=200"]


def test_the_protocol_that_chose_comes_first_and_answers(book: Book):
    places = [("leaves", "finetune", "full"), ("leaves", "knn", "k=20"), ("leaves", "linear", "")]
    for seed in range(3):
        book.add(
            "best",
            seed,
            dict(zip(places, (0.7 + 0.01 * seed, 0.4, 0.5), strict=True)),
            config={"objective": "finetune"},
        )
        book.add("without dropout", seed, dict.fromkeys(places, 0.5), config={"objective": "finetune"})
    assert leaderboard(book.frame, "gamma")["protocol"].drop_duplicates().tolist() == ["finetune", "linear", "knn"]
    (answer,) = wording.answers(comparison(book.frame, "gamma"))
    assert "(finetune full), best scores 21.0 points above 'without dropout'" in answer


def test_comparison_is_paired_per_dataset_and_overall(frame: pd.DataFrame):
    gaps = comparison(frame, "gamma")
    assert gaps.columns.tolist() == COMPARISON.names
    rows = gaps[(gaps["baseline"] == "without gamma") & (gaps["protocol"] == "linear")]
    assert rows["dataset"].fillna("all").tolist() == ["leaves", "wings", "all"]
    overall = rows.iloc[-1]
    assert overall["difference"] == pytest.approx(0.04 / 3)
    assert (overall["seeds"], overall["datasets"], overall["missing"], overall["separated"]) == (3, 2, 0, False)
    assert gaps["role"].tolist().index("control") > gaps["role"].tolist().index("baseline")
    (answer,) = wording.answers(gaps)
    assert answer.startswith("Over 2 datasets and 3 seeds (linear), best scores 1.3 points above 'without gamma' (95 %")
    assert answer.endswith("): not separated.")


def test_of_several_candidates_the_one_that_validation_prefers_is_compared_with_the_others(book: Book):
    for name, objective, test in (("jigsaw", 0.7, 0.5), ("simclr", 0.8, 0.6), ("srgan", 0.6, 0.9)):
        book.add(name, 1000, {"leaves": 0.1}, stage="search", draw=0, objective=objective)
        for seed in range(3):
            book.add(name, seed, {"leaves": test + 0.01 * seed}, role="best", objective=0.9 - objective)
    book.add("simclr without gamma", 0, {"leaves": 0.5})
    assert [best.candidate for best in search_bests(book.frame, "gamma")] == ["simclr", "jigsaw", "srgan"]
    gaps = comparison(book.frame, "gamma")
    assert set(gaps["configuration"]) == {"simclr"}
    assert gaps["baseline"].unique().tolist() == ["jigsaw", "srgan", "simclr without gamma"]
    first, second, _ = wording.answers(gaps)
    assert first.startswith(
        "Of 3 candidates validation prefers simclr: over 1 dataset and 3 seeds (linear), simclr scores"
    )
    assert "10.0 points above 'jigsaw'" in first
    assert "30.0 points below 'srgan'" in second
    board = leaderboard(book.frame, "gamma")
    assert board["configuration"].tolist() == ["srgan", "simclr", "jigsaw", "simclr without gamma"]


def test_a_candidate_whose_confirmation_failed_does_not_lead(book: Book):
    for name, objective in (("jigsaw", 0.7), ("simclr", 0.8)):
        book.add(name, 1000, {"leaves": 0.1}, stage="search", draw=0, objective=objective)
    for seed in range(2):
        book.add("simclr", seed, {}, role="best", status="failed", error="TrialFailed: the loss is not finite")
        book.add("jigsaw", seed, {"leaves": 0.5}, role="best")
        book.add("random_init", seed, {"leaves": 0.3}, role="control")
    gaps = comparison(book.frame, "gamma")
    assert set(gaps["configuration"]) == {"jigsaw"}
    assert gaps["baseline"].unique().tolist() == ["random_init"]


def test_a_seed_missing_on_one_side_is_left_out_and_counted(book: Book):
    for seed in range(3):
        book.add("best", seed, {"leaves": 0.7 + 0.01 * seed})
    for seed in range(1, 4):
        book.add("plain", seed, {"leaves": 0.6 + 0.02 * seed})
    (row, _) = comparison(book.frame, "gamma").to_dict("records")
    assert (row["seeds"], row["missing"]) == (2, 2)
    assert row["difference"] == pytest.approx(0.085)  # 0.71 - 0.62 and 0.72 - 0.64


def test_failed_trials_do_not_score(book: Book):
    book.add("best", 0, {"leaves": 0.7})
    book.add("best", 1, {}, status="failed", error="x")
    assert leaderboard(book.frame, "gamma")["seeds"].tolist() == [1]


def test_a_longer_search_can_find_another_best(book: Book):
    book.add(None, 0, {"leaves": 0.1}, draw=0, objective=0.5, configuration_id="first")
    book.add(None, 0, {"leaves": 0.1}, draw=1, objective=0.6, configuration_id="second")
    book.add("best", 0, {"leaves": 0.72}, configuration_id="second")
    book.add("best", 0, {"leaves": 0.71}, configuration_id="first")
    board = leaderboard(book.frame, "gamma")
    assert board["configuration_id"].tolist() == ["second"]
    assert board["value"].tolist() == [0.72]


def test_only_the_newest_version_of_a_sweep_is_shown(book: Book):
    book.add("best", 0, {"leaves": 0.9}, sweep_id="old")
    book.add("best", 0, {"leaves": 0.7}, sweep_id="new")
    assert leaderboard(book.frame, "gamma")["value"].tolist() == [0.7]
    assert "The ledger also holds 1 earlier version of this sweep." in shown(book.frame)


def test_trial_counts(full: Book):
    assert count_trials(of_sweep(full.frame, "gamma")) == {"finished": 12, "pruned": 1, "failed": 1, "reused": 0}
    identity = full.add(None, 7, {"leaves": 0.5}, sweep="another", draw=0, configuration_id="z")
    full.ledger.adopt(identity, Membership(sweep="gamma", sweep_id="v1", stage="confirm", configuration="z"))
    assert count_trials(of_sweep(full.frame, "gamma"))["reused"] == 1
    # A search trial that is also the first seed of `confirm` is one trial, and it was run here.
    here = full.frame[(full.frame["stage"] == "search") & (full.frame["status"] == "finished")]["trial_id"].iloc[0]
    full.ledger.adopt(here, Membership(sweep="gamma", sweep_id="v1", stage="confirm", configuration="best"))
    assert count_trials(of_sweep(full.frame, "gamma")) == {"finished": 13, "pruned": 1, "failed": 1, "reused": 1}


def test_failures_tell_which_why_and_where(frame: pd.DataFrame):
    (row,) = failed_trials(of_sweep(frame, "gamma")).to_dict("records")
    assert (row["error"], row["error_file"], row["draw"]) == ("TrialFailed: the loss is not finite", "errors/x.txt", 4)
    assert f"{row['trial_id'][:12]} best draw 4, seed 0: TrialFailed: the loss is not finite (errors/x.txt)" in shown(
        frame
    )


@pytest.mark.parametrize(("count", "lines"), [(5, 5 + 1), (6, 1 + 1), (2_000, 1 + 1)])
def test_what_befell_many_trials_is_said_once_with_the_first_and_the_count(count: int, lines: int):
    def failed(number: int, error: str) -> SimpleNamespace:
        names = {"trial_id": f"{number:064d}", "configuration": "best", "draw": number, "seed": 0}
        return SimpleNamespace(**names, error=error, error_file=f"errors/{number}.txt")

    rows = [failed(number, "TrialFailed: out of memory") for number in range(count)]
    said = wording.failures([*rows, failed(7_000, "KeyError: 'x'")])
    assert len(said) == lines
    assert said[0] == "000000000000 best draw 7000, seed 0: KeyError: 'x' (errors/7000.txt)"
    more = f" and {count - 1:,} more" if lines == 2 else ""
    assert said[1] == f"000000000000 best draw 0, seed 0{more}: TrialFailed: out of memory (errors/0.txt)"


def test_the_stated_columns_are_enough_for_the_report(full: Book):
    part = full.ledger.read(columns=COLUMNS).frame
    assert shown(part) == shown(full.frame)
    assert export(part, None, "json") == export(full.frame, None, "json")


def test_an_unknown_sweep_is_a_clear_error(frame: pd.DataFrame):
    with pytest.raises(UnknownName, match="did you mean 'gamma'"):
        render(frame, "gama")
    with pytest.raises(UnknownName, match="did you mean 'json'"):
        export(frame, None, "jsn")


def test_an_empty_ledger_renders(tmp_path: Path):
    frame = Book(tmp_path).frame
    assert sweeps(frame) == []
    assert shown(frame) == "No results yet.\n"
    assert pq.read_table(io.BytesIO(export(frame, None, "parquet"))).schema.names == LEADERBOARD.names
    assert json.loads(export(frame, None, "json")) == []
    assert export(frame, None, "md") == b""


def test_a_sweep_in_which_everything_failed_renders(book: Book):
    book.add(None, 0, {}, draw=0, status="failed", error="ValueError: no", objective=None)
    text = shown(book.frame)
    assert "No finished trial has a test score yet." in text
    assert "ValueError: no" in text
    for kind in FORMATS:
        export(book.frame, None, kind)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_nothing_is_cut_and_no_line_is_too_wide(full: Book, width: int):
    for number in range(6):
        full.add("best", 0, {f"dataset {number}": 0.5}, configuration_id="c1", sweep="wide")
        full.add("best", number, {f"dataset {each}": 0.5 + 0.01 * each for each in range(6)}, sweep="wide")
    text = shown(full.frame, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for expected in ("72.0*", "[69.5, 74.5]", "70.7=", "random-init", "48 s", "1,234", "dataset 5"):
        assert expected in text


def test_the_narrow_report_golden(frame: pd.DataFrame):
    head = shown(frame, 80, "gamma").split("\nknn k=20")[0]
    assert [line.rstrip() for line in head.splitlines()] == GOLDEN.splitlines()


GOLDEN = """\
gamma ──────────────────────────────────────────────────────────────────────────

Over 2 datasets and 3 seeds (linear), best scores 1.3 points above 'without
gamma' (95 % interval -2.5 to +5.1, p = 0.27): not separated.

linear, test score in %
                                        leaves               wings
                                        top-1                top-1
configuration           seeds    rank   n = 250              n = 250
───────────────────────────────────────────────────────────────────────────────
best                        3   1.0 a   72.0* [69.5, 74.5]   62.0* [59.5, 64.5]
without gamma               3   2.0 a   70.7= [67.8, 73.5]   60.7= [57.8, 63.5]

random-init (control)       3           30.0  [30.0, 30.0]   31.0  [31.0, 31.0]

configuration           validation %   device time   images/s   memory
──────────────────────────────────────────────────────────────────────
best                            60.0          48 s      1,234
without gamma                   60.0          48 s      1,234

random-init (control)           60.0          48 s      1,234
"""


def test_hostile_names_are_text_everywhere(book: Book):
    names = ["[bold]x[/bold] [/]", "<script>alert(1)</script>", "a|b\nc", "\x1b[31mred", "*_`~#"]
    for name in names:
        for seed in (0, 1):
            value = 0.5 + 0.01 * seed
            book.add(name, seed, {name: value}, sweep=name, method=name, role="best")
            book.add(f"{name} plain", seed, {name: value / 2}, sweep=name)
        book.add("broken", 0, {}, sweep=name, status="failed", error=f"{name}: bad", error_file=name)
    text = shown(book.frame, 140, problems=("[red]file", "\x1b[2J"))
    assert "[bold]x[/bold] [/]" in text
    assert "[red]file" in text
    assert "a|b c" in text
    assert "\x1b" not in text
    markdown = export(book.frame, None, "md").decode()
    assert "<script>" not in markdown
    assert "\\[bold\\]x\\[/bold\\] \\[/\\]" in markdown
    assert "\x1b" not in markdown
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (6, 8)  # leaderboard and costs, comparison
    assert {row["sweep"] for row in json.loads(export(book.frame, None, "json"))} == set(names)
    shown_names = {wording.visible(name) for name in names}
    assert set(pd.read_csv(io.BytesIO(export(book.frame, None, "csv")))["sweep"]) == shown_names


def test_escape():
    assert escape("a|b_c<d>&[e]*\\\n\x07") == "a\\|b\\_c&lt;d&gt;&amp;\\[e\\]\\*\\\\  "


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_ledger_gives_the_same_bytes(frame: pd.DataFrame, kind: str):
    first = export(frame, None, kind)
    assert first == export(frame, None, kind)
    assert first == export(frame.sample(frac=1, random_state=0), None, kind)
    assert first == export(frame, "gamma", kind)


def test_parquet_and_csv_exports_are_the_leaderboard(frame: pd.DataFrame):
    board = leaderboard(frame, "gamma")
    table = pq.read_table(io.BytesIO(export(frame, "gamma", "parquet")))
    assert table.schema.equals(LEADERBOARD)
    assert table["value"].to_pylist() == board["value"].tolist()
    head, *rows = csv.reader(io.StringIO(export(frame, "gamma", "csv").decode()))
    assert head == LEADERBOARD.names
    assert [float(row[head.index("value")]) for row in rows] == board["value"].tolist()


def test_json_export(frame: pd.DataFrame):
    (tree,) = json.loads(export(frame, "gamma", "json"))
    assert tree["trials"]["finished"] == 12
    assert tree["search_best"]["best"]["swept"] == {"gamma.both": True, "gamma.low": 0.4}
    assert tree["leaderboard"][0]["configuration"] == "best"
    assert tree["leaderboard"][-1]["rank"] is None
    assert tree["failures"][0]["error"] == "TrialFailed: the loss is not finite"


def test_markdown_export(frame: pd.DataFrame):
    text = export(frame, "gamma", "md").decode()
    assert text.startswith("## gamma\n\n**Over 2 datasets and 3 seeds (linear), best scores 1.3 points above")
    assert "| configuration | seeds | rank | group | leaves (top-1) | wings (top-1) |\n| --- | ---: |" in text
    assert "| best | 3 | 1.0 | a | **72.0** \\[69.5, 74.5\\] | **62.0** \\[59.5, 64.5\\] |" in text
    assert "| random-init (control) | 3 |  |  | 30.0 " in text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.percent(0.7123), "71.2"),
        (wording.percent(math.nan), ""),
        (wording.points(0.012), "+1.2"),
        (wording.points(-0.0001), "+0.0"),
        (wording.interval(0.684, 0.739), "[68.4, 73.9]"),
        (wording.interval(-0.004, 0.028, signed=True), "[-0.4, +2.8]"),
        (wording.interval(None, None), ""),
        (wording.p_value(0.11), "p = 0.11"),
        (wording.p_value(0.0042), "p = 0.004"),
        (wording.p_value(0.0), "p < 0.001"),
        (wording.duration(3.21), "3.2 s"),
        (wording.duration(200), "3 min 20 s"),
        (wording.duration(7500), "2 h 05 min"),
        (wording.memory(812 * 2**20), "812 MiB"),
        (wording.memory(3 * 2**30), "3.0 GiB"),
        (wording.count(1, "seed"), "1 seed"),
        (wording.number(0.30000000000000004), "0.3"),
        (wording.metric_name("mean_per_class"), "mean/class"),
        (wording.protocol_name("knn", "k=20"), "knn k=20"),
    ],
)
def test_wording(written: str, expected: str):
    assert written == expected
