"""`bench compare`: paired figures worked out by hand, which trials a name means, and what cannot be compared."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.errors import BadInput, BenchError, UnknownName
from bench.records import digest
from bench.results.contrast import Contrast, contrast
from bench.results.contrast_text import as_json, markdown
from bench.results.ledger import Ledger
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table
from bench.results.selection import NO_FILTERS, Filters
from bench.results.sides import find_side, read_sides

CONFIG = {
    "method": "simclr",
    "config": {"gamma": {"enabled": True, "low": 0.5}, "temperature": 0.2},
    "training": {"lr": 0.001, "epochs": 10},
    "data": "fp leaves",
    "evaluate": [{"fingerprint": "fp leaves", "metric": "top1", "protocols": ["linear"]}],
    "protocol_versions": {"linear": 2},
    "objective": "linear",
}
PLAIN = CONFIG | {"config": {"gamma": {"enabled": False, "low": 0.5}, "temperature": 0.2}}
OURS = {"leaves": (0.62, 0.66, 0.70), "wings": (0.50, 0.52, 0.54)}
THEIRS = {"leaves": (0.60, 0.61, 0.65), "wings": (0.49, 0.50, 0.54)}


def add(out: Path, name: str, seed: int, scores: dict[Any, float], **more: Any) -> str:
    """Write a trial: test scores by dataset, or by (dataset, protocol, variant, metric); returns its id."""
    place = {"sweep": "s", "sweep_id": "v1", "stage": "confirm", "role": "best", "configuration": name}
    place |= {key: more.pop(key) for key in (*place, "draw") if key in more}
    prefix = more.pop("fingerprint", "fp ")
    config = more.pop("config", CONFIG)
    facts: dict[str, Any] = {"method": "simclr", "encoder": "small", "status": "finished", "objective": 0.5}
    facts |= {"device_seconds": 40.0, "images_per_second": 1000.0, "peak_memory_bytes": 2**30}
    identity = digest(config)
    facts |= {"trial_id": digest([identity, seed, name]), "configuration_id": identity, "seed": seed} | more
    rows = []
    for key, value in scores.items():
        dataset, protocol, variant, metric = (key, "linear", "", "top1") if isinstance(key, str) else key
        at: Any = {"dataset": dataset, "protocol": protocol, "variant": variant, "samples": 250, "metric": metric}
        at |= {"dataset_fingerprint": prefix + dataset, "headline": metric == "top1"}
        rows.append(Measurement(**at, split="test", value=value, low=value - 0.05, high=value + 0.05))
    kept = config | {"seed": seed}
    Ledger(out).write(rows_table(TrialFacts(membership=Membership(**place), config=kept, **facts), rows))
    return str(facts["trial_id"])


def both(out: Path) -> None:
    """Two configurations of one sweep on three seeds and two datasets."""
    for seed in range(3):
        add(out, "ours", seed, {name: values[seed] for name, values in OURS.items()})
        scores = {name: values[seed] for name, values in THEIRS.items()}
        add(out, "theirs", seed, scores, role="baseline", config=PLAIN, device_seconds=20.0 + seed)


def against(out: Path, first: str = "ours", second: str = "theirs", filters: Filters = NO_FILTERS) -> Contrast:
    frame = read_sides(out, (first, second), None).frame
    return contrast(find_side(frame, first), find_side(frame, second), filters)


def run(out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments, "--out", str(out)])


def test_figures_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    both(tmp_path)
    (board,) = against(tmp_path).boards
    leaves, wings, everywhere = board.results
    # Leaves: differences 2, 5, 5 points: mean 4, deviation sqrt(3), standard error 1, t = 4 with 2 degrees of freedom,
    # of which the two-sided p is 1 - t / sqrt(t^2 + 2), and whose 97.5 % point is 4.302653.
    assert leaves.first is not None
    assert leaves.second is not None
    assert leaves.first.mean == pytest.approx(0.66)
    assert leaves.second.mean == pytest.approx(0.62)
    # Theirs: 60, 61, 65: deviation sqrt(7), standard error sqrt(7 / 3).
    assert leaves.second.high == pytest.approx(0.62 + 0.04302653 * math.sqrt(7 / 3), abs=1e-7)
    assert leaves.gap.difference == pytest.approx(0.04)
    assert (leaves.gap.low, leaves.gap.high) == pytest.approx((0.04 - 0.04302653, 0.04 + 0.04302653), abs=1e-7)
    assert leaves.gap.p_value == pytest.approx(1 - 4 / math.sqrt(18))
    assert leaves.gap.separated is False
    # Wings: 1, 2, 0: mean 1. Over both each seed gives one difference, 1.5, 3.5, 2.5: mean 2.5, error 1 / sqrt(3).
    assert wings.gap.difference == pytest.approx(0.01)
    assert everywhere.dataset is None
    assert everywhere.gap.difference == pytest.approx(0.025)
    t = 2.5 * math.sqrt(3)
    assert everywhere.gap.p_value == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert everywhere.gap.low == pytest.approx(0.025 - 0.04302653 / math.sqrt(3), abs=1e-7)
    assert everywhere.gap.separated is True
    # Ours over both: 56, 59, 62: mean 59. Theirs: 54.5, 55.5, 59.5: mean 56.5.
    assert everywhere.first is not None
    assert everywhere.second is not None
    assert (everywhere.first.mean, everywhere.second.mean) == pytest.approx((0.59, 0.565))
    assert [result.gap.seeds for result in board.results] == [3, 3, 3]
    assert [result.alone for result in board.results] == [((), ())] * 3


def test_the_answer_is_a_sentence_and_stands_first(tmp_path: Path) -> None:
    both(tmp_path)
    done = run(tmp_path, "ours", "theirs", "--format", "md")
    assert done.exit_code == 0, done.output
    assert done.output.startswith(
        "**Over 2 datasets and 3 seeds (linear), ours scores 2.5 points above 'theirs' (95 % interval +0.0 to +5.0, "
        "p = 0.049): separated.**"
    )
    text = done.output.replace("\\", "")
    assert "| leaves, top-1, n=250 | 66.0 [56.1, 75.9] | 62.0 [55.4, 68.6] | +4.0 [-0.3, +8.3] | 0.057 | 3 |" in text
    assert "| mean over datasets | 59.0 [51.5, 66.5] | 56.5 [49.9, 63.1] | +2.5 [+0.0, +5.0] | 0.049 | 3 |" in text
    assert "| A | 50.0 | 40 s | 1,000 | 1.0 GiB |" in text
    assert "| B | 50.0 | 21 s | 1,000 | 1.0 GiB |" in text
    assert "| gamma.enabled | true | false |" in text
    assert "temperature" not in done.output  # it is the same
    assert "3 seeds are few" in text


def test_the_other_order_turns_the_sign(tmp_path: Path) -> None:
    both(tmp_path)
    assert against(tmp_path, "theirs", "ours").boards[0].results[0].gap.difference == pytest.approx(-0.04)


def test_seeds_without_a_partner_are_named_and_in_no_difference(tmp_path: Path) -> None:
    both(tmp_path)
    add(tmp_path, "theirs", 7, {"wings": 0.99, "leaves": 0.99}, role="baseline", config=PLAIN)
    add(tmp_path, "theirs", 8, {"wings": 0.99}, role="baseline", config=PLAIN)
    add(tmp_path, "ours", 5, {"leaves": 0.10})
    found = against(tmp_path)
    leaves, wings, everywhere = found.boards[0].results
    assert (leaves.alone, wings.alone) == (((5,), (7,)), ((), (7, 8)))
    assert [each.gap.difference for each in (leaves, wings, everywhere)] == pytest.approx([0.04, 0.01, 0.025])
    assert wings.second is not None
    assert wings.second.mean == pytest.approx((0.49 + 0.50 + 0.54 + 0.99 + 0.99) / 5)
    said = markdown(found)
    assert "Seeds without a partner: 5 of A and 7 of B, on leaves (linear)." in said
    assert "Seeds without a partner: 7, 8 of B, on wings (linear)." in said
    assert "A and B are means over all their seeds, A - B over the pairs." in said


def test_json_holds_fractions_and_nulls(tmp_path: Path) -> None:
    both(tmp_path)
    done = run(tmp_path, "ours", "theirs", "--format", "json", "--dataset", "leaves")
    tree = json.loads(done.output)
    (result,) = tree["results"]
    assert result["difference"] == pytest.approx(0.04)
    assert result["a"]["mean"] == pytest.approx(0.66)
    assert (result["pairs"], result["alone_a"], result["dataset"], result["metric"]) == (3, [], "leaves", "top1")
    assert tree["differs"] == {"gamma.enabled": {"a": True, "b": False}}
    assert tree["b"]["device_seconds"] == 21.0
    assert tree["a"]["seeds"] == [0, 1, 2]
    target = tmp_path / "compare.json"
    assert (
        run(tmp_path, "ours", "theirs", "--format", "json", "--dataset", "leaves", "--to", str(target)).exit_code == 0
    )
    assert json.loads(target.read_text()) == tree


def test_one_seed_is_said_to_settle_nothing(tmp_path: Path) -> None:
    ids = [add(tmp_path, "ours", 0, {"leaves": 0.7}), add(tmp_path, "theirs", 0, {"leaves": 0.6}, config=PLAIN)]
    found = against(tmp_path, ids[0][:10], ids[1])
    assert "one seed gives no interval, so nothing is settled." in found.answer
    (leaves,) = found.boards[0].results
    assert leaves.gap.difference == pytest.approx(0.1)
    assert math.isnan(leaves.gap.p_value)
    assert leaves.first is not None
    assert (leaves.first.low, leaves.first.high) == pytest.approx((0.65, 0.75))  # the run's own, over samples
    assert "No predictions of single test images are kept" in found.notes[0]
    assert f"ours, seed 0 ({ids[0][:8]})" in found.answer


def test_two_seeds_of_one_configuration_have_no_pair(tmp_path: Path) -> None:
    ids = [add(tmp_path, "ours", seed, {"leaves": 0.7 + seed / 100}) for seed in range(2)]
    found = against(tmp_path, *ids)
    assert found.answer.endswith("have no seed in common yet.")
    (leaves,) = found.boards[0].results
    assert leaves.alone == ((0,), (1,))
    assert "Their configurations do not differ, but for the seeds." in markdown(found)
    assert json.loads(as_json(found))["results"][0]["difference"] is None


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    add(tmp_path, "ours", 0, {"leaves": 0.7})
    add(tmp_path, "theirs", 0, {"wings": 0.7}, config=PLAIN)
    found = against(tmp_path)
    assert found.answer == "ours and 'theirs' have no dataset under the same protocol in common."
    assert [result.gap for result in found.boards[0].results] == [None, None]
    assert "0" in markdown(found)


def test_datasets_are_known_by_content_and_not_by_name(tmp_path: Path) -> None:
    for seed in range(2):
        add(tmp_path, "ours", seed, {"leaves": 0.7 + seed / 50})
        add(tmp_path, "theirs", seed, {"leaves": 0.6}, config=PLAIN, fingerprint="other ")
    results = against(tmp_path).boards[0].results
    assert [result.dataset for result in results] == ["leaves", "leaves (other le)"]
    assert all(result.gap is None for result in results)


def test_names_of_several_configurations_are_refused_with_the_choices(tmp_path: Path) -> None:
    both(tmp_path)
    for seed in range(2):
        other = CONFIG | {"training": {"lr": 0.01}}
        add(tmp_path, "ours", seed, {"leaves": 0.5}, sweep="t", sweep_id="w1", config=other)
        add(tmp_path, "random/init", seed, {"leaves": 0.5}, sweep="t", sweep_id="w1", config=other | {"method": "no"})
    with pytest.raises(BadInput, match=r"'ours' is 2 configurations: s/ours, t/ours; name one as SWEEP/CONFIGURATION"):
        against(tmp_path)
    assert against(tmp_path, "s/ours").names == ("ours", "theirs")
    assert against(tmp_path, "s/ours", "t/ours").names == ("s/ours", "t/ours")
    assert against(tmp_path, "t/random/init").names == against(tmp_path, "random/init").names
    assert run(tmp_path, "ours", "theirs", "--sweep", "s").exit_code == 0
    with pytest.raises(UnknownName, match="did you mean 'theirs'"):
        against(tmp_path, "s/ours", "theirz")
    with pytest.raises(BadInput, match="have trials in common"):
        against(tmp_path, "theirs", "s/theirs")


def test_the_same_control_in_two_sweeps_is_one_configuration(tmp_path: Path) -> None:
    both(tmp_path)
    for sweep, seeds in (("s", (0, 1)), ("t", (1, 2))):
        for seed in seeds:
            add(
                tmp_path,
                "random_init",
                seed,
                {"leaves": 0.3 + seed / 100},
                sweep=sweep,
                config=CONFIG | {"method": "no"},
            )
    found = against(tmp_path, "ours", "random_init")
    assert found.sides[1].seeds == [0, 1, 2]
    assert found.boards[0].results[0].gap.seeds == 3


def test_beginnings_of_ids(tmp_path: Path) -> None:
    both(tmp_path)
    for end in "12":
        add(tmp_path, "theirs", int(end) + 10, {"leaves": 0.5}, config=PLAIN, trial_id="abcd" + end * 60)
    with pytest.raises(BadInput, match=r"'abcd' begins the ids of 2 trials: abcd11111111 \(theirs, seed 11\)"):
        against(tmp_path, "ours", "abcd")
    assert against(tmp_path, "ours", "abcd1").sides[1].seeds == [11]


def test_trials_of_the_search_can_be_named_and_say_so(tmp_path: Path) -> None:
    both(tmp_path)
    drawn = add(tmp_path, "ours", 99, {"leaves": 0.5}, stage="search", role=None, draw=3, config=PLAIN)
    found = against(tmp_path, "theirs", drawn[:12])
    assert f"ours, draw 3 ({drawn[:8]}) is of the search" in " ".join(found.notes)
    add(tmp_path, "ours", 98, {}, stage="search", role=None, draw=4, status="failed", error="x", trial_id="fa11" * 16)
    with pytest.raises(BadInput, match=r"has no finished trial \(failed\)"):
        against(tmp_path, "theirs", "fa11")


def test_failed_trials_unlike_protocols_and_fields_of_one_side_are_told(tmp_path: Path) -> None:
    both(tmp_path)
    add(tmp_path, "ours", 4, {}, status="failed", error="out of memory")
    newer: dict[str, Any] = CONFIG | {"method": "jigsaw", "config": {"tile": 8}, "protocol_versions": {"linear": 3}}
    for seed in range(3):
        add(tmp_path, "third", seed, {"leaves": 0.5 + seed / 90}, config=newer, method="jigsaw")
    said = markdown(against(tmp_path, "ours", "third"))
    assert "ours: 1 trial failed and is not in it." in said
    assert "Judged by unlike versions of a protocol, so differences are of both: linear (version 2 and 3)." in said
    assert "| method | simclr | jigsaw |" in said
    assert "Only A has: gamma.enabled = true, gamma.low = 0.5, temperature = 0.2." in said
    assert "Only A has: gamma.low = 0.5." in markdown(against(tmp_path))  # what is switched off has no fields
    assert "Only B has: tile = 8." in said


def test_filters_choose_protocols_and_metrics(tmp_path: Path) -> None:
    for seed in range(3):
        noise = seed**2 / 100
        for name, config, base in (("ours", CONFIG, 0.6), ("theirs", PLAIN, 0.5)):
            scores = {"leaves": base, ("leaves", "knn", "k=20", "top1"): base - 0.1 + noise}
            scores[("leaves", "linear", "", "macro_f1")] = base - 0.2
            add(tmp_path, name, seed, scores, config=config)
    boards = against(tmp_path).boards
    assert [(board.protocol, board.variant) for board in boards] == [("linear", ""), ("knn", "k=20")]
    (knn,) = against(tmp_path, filters=Filters(protocols=("knn",))).boards
    assert knn.results[0].gap.difference == pytest.approx(0.1)
    (f1,) = against(tmp_path, filters=Filters(metrics=("macro_f1",))).boards
    assert f1.results[0].first is not None
    assert f1.results[0].first.mean == pytest.approx(0.4)
    assert "linear, macro F1, test score" in markdown(against(tmp_path, filters=Filters(metrics=("macro_f1",))))
    wrong = run(tmp_path, "ours", "theirs", "--metric", "macro_f2")
    assert isinstance(wrong.exception, UnknownName)


def test_hostile_names_are_shown_as_they_are(tmp_path: Path) -> None:
    name = "[red]<b>\x1b[2J|`x`"
    for seed in range(2):
        add(tmp_path, name, seed, {"[bold]|": 0.7 + seed / 90})
        add(tmp_path, "theirs", seed, {"[bold]|": 0.6}, config=PLAIN)
    done = run(tmp_path, name, "theirs")
    assert done.exit_code == 0, done.output
    assert "[red]<b> [2J|`x`" in done.output.replace("\n", " ")
    assert "\x1b" not in done.output
    said = markdown(against(tmp_path, name))
    assert "&lt;b&gt;" in said
    assert "<b>" not in said
    assert all(line.replace("\\|", "").count("|") in (0, 4, 6, 7) for line in said.splitlines())


def test_an_empty_folder_and_a_wrong_format_are_errors(tmp_path: Path) -> None:
    empty = run(tmp_path, "a", "b")
    assert isinstance(empty.exception, BenchError)
    assert "no results to compare" in str(empty.exception)
    both(tmp_path)
    assert "did you mean 'json'" in str(run(tmp_path, "ours", "theirs", "--format", "jsom").exception)


@pytest.mark.parametrize("width", ["60", "80", "140"])
def test_the_terminal_is_never_too_narrow(tmp_path: Path, width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    both(tmp_path)
    done = run(tmp_path, "ours", "theirs")
    assert max(map(len, done.output.splitlines())) <= int(width)
    for text in ("66.0", "+4.0", "0.057", "3 pairs", "gamma.enabled", "1.0 GiB"):
        assert text in done.output
