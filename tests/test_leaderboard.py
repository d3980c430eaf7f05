"""Corrected comparisons, tie groups, filters, published figures, and leaderboards in notebooks."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

import bench
from bench.cli import app
from bench.errors import BadInput, BenchError, UnknownName
from bench.records import digest
from bench.results import wording
from bench.results.comparisons import comparison
from bench.results.findings import findings
from bench.results.leaderboard import leaderboard, standings
from bench.results.ledger import Ledger
from bench.results.report import render
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table
from bench.results.selection import NO_FILTERS, Filters, filters_for, select

NOISE = (0.000, 0.011, -0.006, 0.004, -0.009)


def add(out: Path, name: str, seed: int, scores: dict[Any, float], **more: Any) -> None:
    """Write a trial: test top-1 by dataset or (dataset, protocol, variant, metric)."""
    place = {"sweep": "s", "sweep_id": "v1", "stage": "confirm", "role": "best", "configuration": name}
    place |= {key: more.pop(key) for key in (*place, "draw") if key in more}
    facts: dict[str, Any] = {"method": name, "encoder": "small", "status": "finished", "config": {}, "objective": 0.5}
    facts |= {"trial_id": digest([place, seed]), "configuration_id": f"id {name}", "seed": seed} | more
    rows = []
    for key, value in scores.items():
        dataset, protocol, variant, metric = (key, "linear", "", "top1") if isinstance(key, str) else key
        at: Any = {"dataset": dataset, "protocol": protocol, "variant": variant, "samples": 250, "metric": metric}
        rows.append(Measurement(**at, split="test", value=value, headline=metric == "top1", low=value, high=value))
    Ledger(out).write(rows_table(TrialFacts(membership=Membership(**place), **facts), rows))


def read(out: Path) -> pd.DataFrame:
    frame, problems = Ledger(out).read()
    assert problems == []
    return frame


def race(out: Path, seeds: int = 5) -> pd.DataFrame:
    """Three candidates on two datasets, simclr preferred by validation, a baseline and a control."""
    means = {"simclr": 0.80, "jigsaw": 0.60, "srgan": 0.795, "simclr plain": 0.77}
    for place, (name, mean) in enumerate(means.items()):
        if name != "simclr plain":
            add(
                out,
                name,
                99,
                {"leaves": 0.1, "wings": 0.1},
                stage="search",
                role=None,
                draw=0,
                objective=0.9 - place / 10,
            )
        for seed in range(seeds):
            value = mean + NOISE[(seed + place) % 5] + NOISE[seed]
            role, method = ("baseline", "simclr") if name == "simclr plain" else ("best", name)
            scores = {"leaves": value, "wings": value - 0.1, ("leaves", "knn", "k=20", "top1"): value - 0.3}
            add(out, name, seed, scores, role=role, method=method)
    for seed in range(seeds):
        add(out, "random_init", seed, {"leaves": 0.3 + NOISE[seed], "wings": 0.3}, role="control")
    return read(out)


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return race(tmp_path_factory.mktemp("race"))


def shown(frame: pd.DataFrame, width: int = 120, **more: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(render(frame, None, **more))
    return file.getvalue()


def overall(frame: pd.DataFrame, filters: Filters = NO_FILTERS) -> pd.DataFrame:
    gaps = comparison(frame, "s", filters)
    return gaps[gaps["dataset"].isna() & (gaps["protocol"] == "linear")].set_index("baseline")


def test_several_comparisons_are_corrected_and_controls_are_a_family_of_their_own(frame: pd.DataFrame):
    gaps = overall(frame)
    assert gaps.index.tolist() == ["jigsaw", "srgan", "simclr plain", "random_init"]
    assert gaps["comparisons"].tolist() == [3, 3, 3, 1]
    p = gaps["p_value"]
    assert gaps.loc["jigsaw", "p_adjusted"] == pytest.approx(3 * p["jigsaw"])
    assert gaps.loc["random_init", "p_adjusted"] == p["random_init"]
    first, *others = wording.answers(comparison(frame, "s"))
    assert first.startswith(
        "Of 3 candidates validation prefers simclr: over 2 datasets and 5 seeds (linear), simclr scores"
    )
    assert "by Holm over 3 comparisons): separated." in first
    assert len(others) == 2


def test_separated_is_said_by_the_corrected_p(tmp_path: Path):
    # Differences 1, 1.4 and 0.6 points: t = 4.33, p = 0.049 alone, and 0.098 of two.
    for seed, gap in enumerate((0.010, 0.014, 0.006)):
        base = 0.6 + 0.03 * seed
        add(tmp_path, "ours", seed, {"leaves": base})
        add(tmp_path, "a", seed, {"leaves": base - gap}, role="baseline")
        add(tmp_path, "b", seed, {"leaves": base - gap * 1.001}, role="baseline")
    gaps = overall(read(tmp_path))
    assert (gaps["p_value"] < 0.05).all()
    assert (gaps["low"] > 0).all()
    assert (gaps["p_adjusted"] > 0.05).all()
    assert gaps["separated"].tolist() == [False, False]
    assert wording.answers(comparison(read(tmp_path), "s"))[0].endswith("by Holm over 2 comparisons): not separated.")


def test_baselines_answer_in_the_order_of_the_sweep(tmp_path: Path):
    for seed in range(3):
        for name, role in (("ours", "best"), ("a", "baseline"), ("b", "baseline")):
            add(tmp_path, name, seed, {"leaves": 0.5 + NOISE[seed] * (2 if name == "b" else 1)}, role=role)
    record = {"title": "Is b better?", "confirm": {"baselines": [{"name": "b"}, {"name": "a"}]}}
    (found,) = findings(read(tmp_path), "s", records={"v1": record})
    assert found.gaps["baseline"].unique().tolist() == ["b", "a"]
    assert found.title == "Is b better?"
    (found,) = findings(read(tmp_path), "s")
    assert found.gaps["baseline"].unique().tolist() == ["a", "b"]


def test_tie_groups_and_the_ranks_that_cannot_be_excluded(frame: pd.DataFrame):
    board = leaderboard(frame, "s")
    linear = board[board["protocol"] == "linear"].drop_duplicates("configuration").set_index("configuration")
    assert linear.index.tolist() == ["simclr", "srgan", "simclr plain", "jigsaw", "random_init"]
    assert linear["group"].fillna("").tolist() == ["a", "a", "b", "c", ""]
    assert linear["rank_low"].tolist()[:4] == [1, 1, 3, 4]
    assert linear["rank_high"].tolist()[:4] == [2, 2, 3, 4]
    leaves = board[(board["dataset"] == "leaves") & (board["protocol"] == "linear")].set_index("configuration")
    assert leaves["tie"].tolist()[:4] == [True, True, False, False]
    assert pd.isna(leaves.loc["random_init", "tie"])
    text = shown(frame)
    assert "2 datasets give Friedman's test over 4 configurations no power" in text
    assert "seeds are few" not in text


def test_one_seed_tells_no_groups(tmp_path: Path):
    board = leaderboard(race(tmp_path, seeds=1), "s")
    assert board["group"].isna().all()
    assert board["rank_low"].isna().all()
    assert "One seed: nothing about the spread between runs is known" in shown(read(tmp_path))


def test_an_interval_over_seeds_stays_within_what_a_score_can_be(tmp_path: Path):
    for seed, value in enumerate((0.1, 0.95)):
        add(tmp_path, "ours", seed, {"leaves": value})
    board = leaderboard(read(tmp_path), "s")
    assert board[["low", "high"]].to_numpy().tolist() == [[0.0, 1.0]]


def test_macro_f1_stands_beside_top1_where_classes_are_unequal(tmp_path: Path):
    for name in ("ours", "plain"):
        scores = {
            "cassava": 0.7,
            ("cassava", "linear", "", "macro_f1"): 0.4,
            ("cassava", "linear", "", "mean_per_class"): 0.5,
        }
        scores |= {"cars": 0.7, ("cars", "linear", "", "macro_f1"): 0.69, ("cars", "linear", "", "mean_per_class"): 0.7}
        add(tmp_path, name, 0, scores)
    board = leaderboard(read(tmp_path), "s").set_index(["configuration", "dataset"])
    assert board.loc[("ours", "cassava"), "macro_f1"] == 0.4
    assert pd.isna(board.loc[("ours", "cars"), "macro_f1"])
    assert "F1 40.0" in shown(read(tmp_path))
    assert "F1 69.0" not in shown(read(tmp_path))


def test_published_figures_stand_in_a_column_of_the_study_only(tmp_path: Path):
    for sweep in ("study", "other"):
        for seed in range(3):
            for name in ("simclr", "srgan", "colorization"):
                add(tmp_path, name, seed, {"leaves": 0.5 + NOISE[seed]}, sweep=sweep)
    frame = read(tmp_path)
    board = leaderboard(frame, "study").set_index("configuration")
    assert board.loc[["simclr", "srgan"], "published"].tolist() == [0.73, 0.83]
    assert pd.isna(board.loc["colorization", "published"])
    assert leaderboard(frame, "other")["published"].isna().all()
    same = [column for column in board if column not in ("sweep", "published")]
    other = leaderboard(frame, "other").set_index("configuration")
    pd.testing.assert_frame_equal(board[same], other[same])
    text = shown(frame[frame["sweep"] == "study"])
    assert "published: one unseeded run selected on its own test split (arXiv 2107.13973, cassava)" in text
    assert next(line for line in text.splitlines() if line.startswith("srgan")).split()[-2:] == ["83.0", "50.0"]
    assert "published" not in shown(frame[frame["sweep"] == "other"])


def test_a_filter_shows_less_and_says_so(frame: pd.DataFrame):
    filters = filters_for(frame, dataset=["wings"], protocol=["linear"])
    board = leaderboard(frame, "s", filters)
    assert set(board["dataset"]) == {"wings"}
    assert set(board["protocol"]) == {"linear"}
    assert "Shown only: dataset wings; protocol linear. Ranks, ties and means over datasets are among" in shown(
        frame, 200, filters=filters
    )
    knn = leaderboard(frame, "s", filters_for(frame, protocol=["knn k=20"]))
    assert set(knn["variant"]) == {"k=20"}


def test_filters_do_not_change_what_was_chosen_nor_what_p_was_adjusted_for(frame: pd.DataFrame):
    filters = filters_for(frame, method=["simclr,srgan"])
    assert filters.methods == ("simclr", "srgan")
    board = leaderboard(frame, "s", filters)
    linear = board[board["protocol"] == "linear"].drop_duplicates("configuration").set_index("configuration")
    assert linear.index.tolist() == ["simclr", "srgan", "simclr plain", "random_init"]  # controls are always shown
    assert linear["rank"].tolist()[:3] == [1, 2, 3]
    all_gaps, gaps = overall(frame), overall(frame, filters)
    assert gaps.index.tolist() == ["srgan", "simclr plain", "random_init"]
    pd.testing.assert_frame_equal(gaps, all_gaps.loc[gaps.index])
    assert select(frame, "s", filters).leader == "simclr"


def test_a_hidden_leader_is_named(frame: pd.DataFrame):
    filters = filters_for(frame, method=["jigsaw", "srgan"])
    assert comparison(frame, "s", filters).empty
    assert "Validation prefers simclr, which the filter hides: no comparison." in shown(frame, filters=filters)


def test_metrics_and_stages_can_be_asked_for(tmp_path: Path):
    race(tmp_path)
    add(tmp_path, "simclr", 0, {"leaves": 0.8, ("leaves", "linear", "", "macro_f1"): 0.6})
    frame = read(tmp_path)
    boards = standings(select(frame, "s"), filters_for(frame, metric=["macro_f1", "top1"]))
    assert [(board.metric, board.protocol) for board in boards] == [
        ("macro_f1", "linear"),
        ("top1", "linear"),
        ("top1", "knn"),
    ]
    search = leaderboard(frame, "s", Filters(stages=("search",)))
    assert set(search["stage"]) == {"search"}
    assert set(search["configuration"]) == {"simclr", "jigsaw", "srgan"}
    assert "Shown is the search: this is one search trial" in shown(frame, filters=Filters(stages=("search",)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": ["leavs"]}, "no dataset with results is named 'leavs'; did you mean 'leaves'?"),
        ({"method": ["simclr,jigsw"]}, "did you mean 'jigsaw'?"),
        ({"protocol": ["linaer"]}, "did you mean 'linear'?"),
        ({"metric": ["top-1"]}, "did you mean 'top1'?"),
        ({"stage": ["confrm"]}, "no stage is named 'confrm'; did you mean 'confirm'?"),
    ],
)
def test_a_wrong_filter_answers_with_the_nearest_right_one(frame: pd.DataFrame, given: Any, message: str):
    with pytest.raises(UnknownName) as caught:
        filters_for(frame, **given)
    assert message in str(caught.value)


def test_a_name_with_a_comma_is_one_name(tmp_path: Path):
    add(tmp_path, "ours", 0, {"a, b": 0.5, "a": 0.5, "c": 0.4})
    frame = read(tmp_path)
    assert filters_for(frame, dataset=["a, b"]).datasets == ("a, b",)
    assert filters_for(frame, dataset=["a, c"]).datasets == ("a", "c")


def test_the_command_filters_and_writes(tmp_path: Path):
    race(tmp_path)
    run = CliRunner().invoke
    result = run(app, ["report", "--out", str(tmp_path), "--dataset", "leaves", "--protocol", "knn"])
    assert result.exit_code == 0
    assert "wings" not in result.output
    with pytest.raises(UnknownName, match="did you mean 'jigsaw'"):
        run(app, ["report", "--out", str(tmp_path), "--method", "jigsw"], catch_exceptions=False)
    card = tmp_path / "card.md"
    assert run(app, ["report", "--out", str(tmp_path), "--card", str(card)]).exit_code == 0
    assert card.read_text().startswith("# Result card: s\n")
    with pytest.raises(BenchError, match="leave out --format"):
        run(app, ["report", "--out", str(tmp_path), "--card", "x", "--format", "md"], catch_exceptions=False)


def test_notebooks_load_and_rank(tmp_path: Path):
    race(tmp_path)
    rows = bench.load_results(tmp_path)
    pd.testing.assert_frame_equal(rows, bench.load_results(tmp_path / "ledger"))
    assert str(rows["seed"].dtype) == "Int64"
    board = bench.leaderboard(tmp_path, protocol="linear")
    assert board.index.names == ["sweep", "protocol", "configuration"]
    assert board.columns.tolist() == ["role", "rank", "group", "seeds", "leaves top-1 %", "wings top-1 %"]
    assert board.loc[("s", "linear", "simclr"), "leaves top-1 %"] == "80.0* [78.0, 82.0]"
    tidy = bench.leaderboard(rows, "s", tidy=True)
    assert tidy["configuration"].cat.ordered
    assert tidy["configuration"].cat.categories.tolist()[:2] == ["simclr", "srgan"]
    assert tidy["value"].dtype == float


def test_notebooks_show_names_as_text_and_say_what_is_wrong(tmp_path: Path):
    add(tmp_path, "<script>x</script>", 0, {"<b>": 0.5})
    shown_html = bench.leaderboard(tmp_path)._repr_html_()
    assert "<script>" not in shown_html
    assert "&lt;script&gt;" in shown_html
    with pytest.raises(BadInput, match="no results here"):
        bench.load_results(tmp_path / "none")
    (tmp_path / "ledger" / "stranger.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 ledger files could not be used"):
        bench.load_results(tmp_path)
    with pytest.raises(AttributeError, match="nothing"):
        _ = bench.nothing


def test_import_bench_stays_quick():
    code = "import sys, bench; print(sorted({'pandas', 'torch', 'pyarrow', 'numpy', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
