import hashlib
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from typer.testing import CliRunner

from bench.cli import app
from bench.page.diagram import diagram
from bench.page.figures import MOST_CLASSES, confused, confusion_figure, front
from bench.page.render import bounded, plotly_bundle, render_page, write_page
from bench.page.trials import LEAST_DETAILS, MOST_DETAILS, Confusion
from bench.pictures.album import Album, Picture, Row, Strip
from bench.results.ledger import Ledger
from bench.results.questions import sweep_records
from bench.results.ranking import friedman
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table
from bench.safe import exposed, label, script_json

EVIL = '</script><img src=x onerror="window.pwned=1"><b>\'&\u202e$x$'
SWEEP_ID = "ab" * 32
DATASETS = ("leaves", "wings")
CLASSES = ("one", "two", "three")


def add_trial(out: Path, name: str, role: str | None, seed: int, scores: dict[str, float], **over: Any) -> str:
    """Write a trial's rows and, where it finished, its folder."""
    place = over.pop("sweep", "gamma")
    classes = over.pop("classes", CLASSES)
    facts: dict[str, Any] = {
        "trial_id": f"{abs(hash_of(place, name, role, seed)):064x}",
        "pretrain_id": f"{abs(hash_of(name, seed)):064x}",
        "membership": Membership(
            sweep=place,
            sweep_id=SWEEP_ID,
            stage="confirm" if role else "search",
            configuration=name,
            role=role,  # type: ignore[arg-type]
            draw=None if role else seed,
            swept=over.pop("swept", {}),
        ),
        "configuration_id": f"{abs(hash_of(name, None if role else seed)):064x}",
        "method": "simclr",
        "encoder": "small",
        "seed": seed if role else 1000,
        "status": "finished",
        "config": {"objective": "linear", "method": "simclr"},
        "objective": sum(scores.values()) / max(1, len(scores)),
        "device_seconds": 10.0 + len(name),
        "images_per_second": 500.0,
        "peak_memory_bytes": 2**30,
        "git_commit": "0123abcd",
        "versions": {"torch": "2.0"},
    } | over
    measured: list[Measurement] = []
    for dataset, value in scores.items():
        common: dict[str, Any] = {"dataset": dataset, "protocol": "linear", "split": "test", "samples": 30}
        common |= {"dataset_fingerprint": "f" * 64, "chosen": {"l2": 0.1}}
        counts = [9 if i % (len(classes) + 1) == 0 else 1 for i in range(len(classes) ** 2)]
        measured.append(
            Measurement(**common, metric="top1", headline=True, value=value, low=value - 0.1, high=value + 0.1)
        )
        measured.append(Measurement(**common, metric="confusion", value=None, confusion=counts, classes=classes))
    Ledger(out).write(rows_table(TrialFacts(**facts), measured))
    if measured:
        folder = out / "trials" / facts["pretrain_id"][:16]
        folder.mkdir(parents=True, exist_ok=True)
        epochs = [{"number": n, "losses": {"loss": 2.0 / n, EVIL: 1.0}} for n in (1, 2, 3)]
        (folder / "trial.json").write_text(json.dumps({"epochs": epochs}))
    return str(facts["trial_id"])


def hash_of(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest(), "big")


def add_sweep(out: Path, sweep: str = "gamma", candidate: str = "simclr", draws: int = 6, title: str = "Why?") -> None:
    """Write a sweep's record and its study."""
    record = {"sweep_id": SWEEP_ID, "name": sweep, "title": title, "candidates": {candidate: {"method": "simclr"}}}
    (out / "sweeps").mkdir(parents=True, exist_ok=True)
    (out / "sweeps" / f"gamma-{SWEEP_ID[:12]}.json").write_text(json.dumps(record))
    (out / "studies").mkdir(exist_ok=True)
    path = out / "studies" / f"{Path(sweep).name}-{SWEEP_ID[:12]}.log"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=candidate, storage=JournalStorage(JournalFileBackend(str(path))), direction="maximize"
    )
    kinds = {"gamma.low": FloatDistribution(0, 1), EVIL: CategoricalDistribution([EVIL, "plain"])}
    for number in range(draws):
        params = {"gamma.low": number / 10, EVIL: EVIL if number % 2 else "plain"}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=0.5 + number / 50))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sweep: three ranked configurations and a control on two datasets and three seeds, a failed trial."""
    out = tmp_path_factory.mktemp("results")
    for seed in range(3):
        for shift, (name, role) in enumerate(
            {"simclr": "best", "without gamma": "baseline", "with more": "baseline", "random_init": "control"}.items()
        ):
            scores = {data: 0.7 - 0.1 * shift + 0.02 * seed * (place - shift) for place, data in enumerate(DATASETS)}
            add_trial(out, name, role, seed, scores)
    for draw in range(4):
        add_trial(out, "simclr", None, draw, dict.fromkeys(DATASETS, 0.5 + draw / 50), swept={"gamma.low": draw / 10})
    add_trial(
        out,
        "simclr",
        None,
        9,
        {},
        status="failed",
        error="loss is nan",
        error_file="trials/x/error.txt",
        objective=None,
    )
    add_sweep(out)
    return out


def page_of(out: Path, **over: Any) -> str:
    reading = Ledger(out).read()
    given = {"out": out, "records": sweep_records(out), "problems": reading.problems} | over
    return render_page(reading.frame, **given)


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    return page_of(results)


class Elements(HTMLParser):
    """Every element's name and attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def specs_of(page: str) -> Any:
    match = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def test_page_names_no_address(page: str) -> None:
    own = page.replace(plotly_bundle(), "")
    assert len(own) < len(page) - 4_000_000
    assert "://" not in own
    assert not re.search(r"@import|url\(", own)
    elements = Elements(page)
    policy = next(meta["content"] for meta in elements.all("meta") if "Content-Security-Policy" in meta.values())
    assert policy.startswith("default-src 'none'; img-src data: blob:;")
    assert "unsafe-eval" not in policy
    assert all(link["href"].startswith("data:") for link in elements.all("link"))
    assert all(link["href"].startswith("#") for link in elements.all("a"))
    assert not any("src" in attributes for attributes in elements.all("script"))


def test_plotly_is_there_once_and_cannot_end_its_script(page: str) -> None:
    assert page.count(plotly_bundle()) == 1
    assert "</script" not in plotly_bundle().lower()
    assert len(plotly_bundle()) < 5_000_000


def test_every_link_leads_somewhere_and_ids_are_single(page: str) -> None:
    elements = Elements(page)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in elements.all("a")} <= set(ids)
    assert sum(name.startswith("trial-") for name in ids) == 17


def test_leaderboard_says_what_the_terminal_says(page: str) -> None:
    text = " ".join(Elements(page).text.split())
    assert "Why?" in text
    assert "70.0" in text
    assert "Over 2 datasets and 3 seeds (linear), simclr scores 12.0 points above 'without gamma'" in text
    assert "loss is nan" in text
    assert "16 finished, 0 pruned, 1 failed" in text
    assert "no power" in text


def test_tables_are_semantic(page: str) -> None:
    elements = Elements(page)
    assert all(head.get("scope") in ("col", "row") for head in elements.all("th"))
    assert all(picture.get("alt") for picture in elements.all("img"))
    assert len(elements.all("h1")) == 1
    assert elements.all("html")[0]["lang"] == "en"
    assert all(region.get("aria-label") for _, region in elements.found if region.get("role") in ("region", "img"))


def test_same_ledger_same_bytes(results: Path, page: str) -> None:
    assert page_of(results) == page


def test_search_figures_are_optunas(page: str) -> None:
    text = Elements(page).text
    for title in ("Objective against each", "Optimisation history", "Parallel coordinates", "Parameter importances"):
        assert title in text
    assert "loss by epoch" in text
    assert "Most often mistaken" in text
    assert "seed 0" in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "is missing: no figures"),
        (lambda path: path.write_text('{"op_code": 99}\nnot json\n'), "cannot be read"),
        (lambda path: path.write_bytes(b"\x80\x04garbage\n\n"), "cannot be read"),
    ],
)
def test_study_that_is_not_there_is_a_sentence(results: Path, tmp_path: Path, spoil: Any, said: str) -> None:
    out = tmp_path / "copy"
    shutil.copytree(results, out)
    spoil(next((out / "studies").iterdir()))
    text = Elements(page_of(out)).text
    assert said in text
    assert "Optimisation history" not in text


def test_few_draws_are_a_sentence(tmp_path: Path) -> None:
    add_trial(tmp_path, "simclr", None, 0, {"leaves": 0.5})
    add_sweep(tmp_path, draws=1)
    text = Elements(page_of(tmp_path)).text
    assert "1 finished draws are too few" in text
    assert "Nothing is confirmed yet" in text
    assert "No critical-difference diagram" in text


def test_results_without_anything_beside_the_ledger(tmp_path: Path) -> None:
    add_trial(tmp_path, "simclr", "best", 0, {"leaves": 0.5})
    shutil.rmtree(tmp_path / "trials")
    text = Elements(page_of(tmp_path)).text
    assert "definition was not kept" in text
    assert "No trial kept its epochs" in text
    assert "No results yet" in Elements(page_of(tmp_path / "nothing")).text


def evil_results(out: Path) -> Path:
    """A ledger, record, study and trial folders in which every string is hostile."""
    names = {f"{EVIL} a": "best", f"{EVIL} b": "baseline", f"{EVIL} c": "baseline"}
    for seed in range(2):
        for shift, (name, role) in enumerate(names.items()):
            add_trial(
                out,
                name,
                role,
                seed,
                {f"{EVIL}{place}": 0.5 + 0.1 * shift + 0.01 * seed for place in range(2)},
                sweep=EVIL.replace("/", "\u2215"),
                classes=(EVIL, "<script>alert(1)</script>", "a\u202eb"),
                method=EVIL,
                git_commit=EVIL,
                device=EVIL,
                versions={EVIL: EVIL},
                pretext={EVIL: 1.0},
                config={"objective": "linear", EVIL: EVIL},
                swept={EVIL: EVIL},
            )
    common: dict[str, Any] = {"sweep": EVIL.replace("/", "\u2215"), "status": "failed", "objective": None}
    add_trial(out, f"{EVIL} a", None, 1, {}, error=EVIL, error_file=EVIL, method=EVIL, **common)
    add_sweep(out, EVIL.replace("/", "\u2215"), EVIL, title=EVIL)
    folder = next((out / "trials").iterdir())
    (folder / EVIL.replace("/", "\u2215")).write_text("")
    return out


def test_hostile_strings_are_text(tmp_path: Path) -> None:
    page = page_of(evil_results(tmp_path))
    elements = Elements(page)
    assert len(elements.all("script")) == 3
    assert not elements.all("img")
    assert not elements.all("b") or all(set(bold) <= {"style"} for bold in elements.all("b"))
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert "</script><img src=x onerror=" in elements.text
    assert "\u202e" not in page.replace(plotly_bundle(), "")
    shown = json.dumps(specs_of(page))
    assert "<img" not in shown
    assert "<script" not in shown
    assert "&lt;img src=x" in shown


def test_texts_are_made_safe() -> None:
    assert exposed("a\u202eb\nc") == "a\\u202eb\\u000ac"
    assert label("<b>&amp;") == "&lt;b&gt;&amp;amp;"
    assert len(label("x" * 10_000)) < 400
    assert "</" not in script_json({"</script>": ["<!--", float("nan")]})
    assert json.loads(script_json({"</script>": ["<!--", float("nan")]})) == {"</script>": ["<!--", None]}


def test_pareto_front() -> None:
    points = [("dear", 9.0, 0.5), ("cheap", 1.0, 0.3), ("worse", 2.0, 0.2), ("best", 5.0, 0.9), ("same", 5.0, 0.9)]
    assert front(points) == ["cheap", "best"]
    assert front([]) == []


def test_confusion_rows_are_shares() -> None:
    matrix = Confusion("d", "linear", "", ("a", "b"), ((3, 1), (0, 0)))
    figure = confusion_figure("title", matrix)
    assert figure.spec["data"][0]["z"] == [[0.75, 0.25], [0.0, 0.0]]
    assert confused(matrix) == "Most often mistaken: a for b (25% of its images)."
    assert "No test image" in confused(Confusion("d", "linear", "", ("a", "b"), ((3, 0), (0, 2))))
    many = MOST_CLASSES + 1
    rows = tuple(tuple(1 for _ in range(many)) for _ in range(many))
    large = confusion_figure("title", Confusion("d", "linear", "", tuple(map(str, range(many))), rows))
    assert not large.spec
    assert "too many to draw" in large.note


def test_diagram_is_svg_with_bars_and_names() -> None:
    scores = {
        f"<{name}>": {str(data): value + data * 0.001 for data in range(6)}
        for name, value in zip("abcd", (0.9, 0.8, 0.3, 0.1), strict=True)
    }
    test = friedman(scores)
    assert test
    root = ElementTree.fromstring(str(diagram(test)))
    kinds = [line.get("class") for line in root.iter("line")]
    assert kinds.count("leader") == 8
    assert kinds.count("clique") == len(test.cliques) > 0
    assert "<a> 1.00" in [text.text for text in root.iter("text")]
    assert "Critical difference" in (root.get("aria-label") or "")


def test_page_goes_to_a_file_or_a_folder(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    reading, records = Ledger(results).read(), sweep_records(results)
    folder = write_page(tmp_path / "folder", reading, None, out=results, records=records, pictures=False)
    assert folder == tmp_path / "folder" / "report.html"
    file = write_page(tmp_path / "page.html", reading, "gamma", out=results, records=records, pictures=False)
    assert file.read_bytes() == folder.read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == ["report.html"]
    with_pictures = write_page(tmp_path / "pictures.html", reading, "gamma", out=results, records=records)
    assert "No pictures: the trial's configuration" in Elements(with_pictures.read_text()).text


def test_command_writes_the_page(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    to = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", "--out", str(results), "--html", str(to), "--no-pictures"])
    assert done.exit_code == 0, done.output
    assert "Why?" in to.read_text()
    assert "page.html" in done.output.replace("\n", "")


def test_pictures_are_bounded() -> None:
    strips = tuple(Strip(str(size), "", (Row((Picture(b"x" * size, "alt"),)),)) for size in (60, 50, 30))
    album = bounded(Album("a", "b", strips), 100)
    assert [strip.title for strip in album.strips] == ["60", "30"]
    assert album.missing == ("1 strip of pictures left out: a page holds 8 MB of them.",)


def large_frame(results: Path, trials: int, repeats: int) -> pd.DataFrame:
    """A ledger frame of `trials` search trials and their `repeats` rows each, beside the small sweep."""
    frame = Ledger(results).read().frame
    one = frame[(frame["stage"] == "search") & (frame["status"] == "finished")].head(1)
    many = one.loc[one.index.repeat(trials * repeats)].reset_index(drop=True)
    number = pd.Series(range(trials)).repeat(repeats).reset_index(drop=True)
    many["trial_id"] = number.map("{:064x}".format)
    many["configuration_id"] = many["trial_id"]
    many["draw"] = number.astype("Int32")
    many["objective"] = (number % 997) / 1000
    return pd.concat([frame, many], ignore_index=True)


def test_many_rows_give_a_bounded_page(results: Path) -> None:
    page = render_page(large_frame(results, 5000, 20), records=sweep_records(results))
    elements = Elements(page)
    details = [each for each in elements.all("details") if each.get("id", "").startswith("trial-")]
    assert len(details) == MOST_DETAILS >= LEAST_DETAILS
    assert "240 of 5,017 trials are shown" in elements.text
    assert len(page) - len(plotly_bundle()) < 1_500_000


@pytest.mark.slow
def test_a_million_rows_still_open(results: Path) -> None:
    frame = large_frame(results, 50_000, 20)
    start = time.perf_counter()
    page = render_page(frame, records=sweep_records(results))
    assert len(frame) > 1_000_000
    assert len(page) < 7_000_000
    assert time.perf_counter() - start < 120
