"""Sweeps: profiles, settings, and what a wrong one says."""

from pathlib import Path

import pytest

from bench.cards import card_paths
from bench.errors import BadInput, UnknownName
from bench.space import Domain
from bench.sweep import Prune
from bench.sweepfile import load_sweep, parse_setting

SWEEP = """
title = "q"
method = "simclr"
default_profile = "a"
[pretrain]
dataset = "leaves"
epochs = 4
[space]
"gamma.low" = { uniform = [0.3, 1.0] }
"pretrain.lr" = { log_uniform = [1e-4, 1e-2] }
[evaluate]
datasets = ["leaves"]
[confirm]
baselines = [{ name = "plain", set = { "gamma.enabled" = false } }]
[profile.a.search]
trials = 3
[profile.b.pretrain]
epochs = 9
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize("name", card_paths("sweeps"))
@pytest.mark.parametrize("profile", ["small", "full"])
def test_every_sweep_has_both_profiles(name, profile):
    sweep = load_sweep(name, profile=profile)
    assert sweep.name == name
    assert sweep.profile == profile
    assert sweep.title.endswith("?")
    assert (sweep.pretrain.backbone == "small") == (profile == "small")


def test_profiles_lie_over_the_sweep(sweep_file):
    one, other = load_sweep(str(sweep_file)), load_sweep(str(sweep_file), profile="b")
    assert (one.profile, one.search.trials, one.pretrain.epochs) == ("a", 3, 4)
    assert (other.profile, other.search.trials, other.pretrain.epochs) == ("b", 12, 9)
    with pytest.raises(BadInput, match=r"mine\.toml: no profile is named 'c'; there are: a, b"):
        load_sweep(str(sweep_file), profile="c")


def test_a_setting_fixes_a_swept_field(sweep_file):
    settings = ["method.gamma.low=0.7", "pretrain.lr=0.005", "temperature=0.3", "search.seed=5"]
    sweep = load_sweep(str(sweep_file), settings=settings)
    assert sweep.candidates["simclr"].space == {}
    assert sweep.search.seed == 5
    settled = sweep.candidate("simclr")
    assert (settled.config["gamma"]["low"], settled.config["temperature"], settled.training.lr) == (0.7, 0.3, 0.005)
    assert settled.config["gamma"]["high"] == 2.5


def test_drawn_values_and_baselines_reach_method_and_training(sweep_file):
    sweep = load_sweep(str(sweep_file))
    drawn = {"gamma.low": 0.4, "pretrain.lr": 0.002, "finetune.dropout": 0.5}
    settled = sweep.candidate("simclr", drawn, {"gamma.enabled": False})
    assert not settled.config["gamma"]["enabled"]
    assert (settled.training.lr, settled.finetune.dropout) == (0.002, 0.5)


SEVERAL = """
title = "q"
[pretrain]
dataset = "leaves"
lr = 1e-3
[candidates.plain]
method = "simclr"
set = { "gamma.enabled" = false, "pretrain.lr" = 2e-3 }
[candidates.simclr]
space = { "gamma.low" = { uniform = [0.3, 1.0] }, temperature = { choice = [0.1, 0.2] } }
[candidates.random_init]
[search]
trials = 4
[evaluate]
datasets = ["leaves"]
[confirm]
controls = []
baselines = [{ name = "both views", of = "simclr", set = { "gamma.views" = "both" } }]
"""


def test_a_sweep_of_several_methods_has_a_space_for_each(tmp_path):
    path = tmp_path / "several.toml"
    path.write_text(SEVERAL)
    sweep = load_sweep(str(path))
    assert {name: (sweep.method(name), sweep.draws(name)) for name in sweep.candidates} == {
        "plain": ("simclr", 1),
        "simclr": ("simclr", 4),
        "random_init": ("random_init", 1),
    }
    assert sweep.candidate("plain").training.lr == 2e-3
    assert sweep.candidate("simclr").training.lr == 1e-3
    assert sweep.candidate("random_init").training.epochs == 0
    fixed = load_sweep(str(path), settings=["pretrain.lr=0.5", "simclr.temperature=0.3"])
    assert {fixed.candidate(name).training.lr for name in ("plain", "simclr")} == {0.5}
    assert list(fixed.candidates["simclr"].space) == ["gamma.low"]
    assert list(load_sweep(str(path), only=["plain"]).candidates) == ["plain"]
    assert load_sweep(str(path), only=["plain"]).confirm.baselines == ()
    assert [row.name for row in load_sweep(str(path), only=["simclr"]).confirm.baselines] == ["both views"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('of = "simclr"', 'of = "simclar"', r"no candidate .* is named 'simclar'; did you mean 'simclr'"),
        ('of = "simclr", ', "", r"no candidate \(of baseline 'both views'\) is named ''; there are: plain"),
        ("[candidates.random_init]", "[candidates.randominit]", r"no method is named 'randominit'"),
        ('"gamma.views" = "both"', '"gamma.veiws" = "both"', r"candidate simclr: .* did you mean 'method.gamma.views'"),
        ("[search]", "[set]\ntemperature = 0.2\n[search]", r"set: with \[candidates\], each has its own"),
        ("controls = []", 'controls = ["random_init"]', r"a name is used twice"),
        (
            "space = { ",
            'spaec = { "x" = 1 }\nspace = { ',
            r"unknown key 'candidates.simclr.spaec'; did you mean 'space'",
        ),
    ],
)
def test_a_wrong_candidate_is_one_clear_error(tmp_path, old, new, message):
    assert old in SEVERAL
    path = tmp_path / "several.toml"
    path.write_text(SEVERAL.replace(old, new))
    with pytest.raises(BadInput, match=message):
        load_sweep(str(path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[candidates.random_init]", "[candidates]\nrandom_init = 3", r"candidates.random_init must be a table"),
        (
            "[candidates.random_init]",
            "[candidates.random_init]\nset = 3",
            r"candidates.random_init.set must be a table",
        ),
        ("[confirm]", "[not_confirm]", r"unknown key 'not_confirm'"),
        ('{ name = "both views"', '3, { name = "both views"', r"confirm.baselines.0: .* \(given: 3\)"),
    ],
)
def test_a_wrong_table_is_a_clear_error_also_with_options(tmp_path, old, new, message):
    assert old in SEVERAL
    path = tmp_path / "several.toml"
    text = SEVERAL.replace(old, new)
    if new.startswith("[candidates]"):  # TOML wants the table before those in it
        text = text.replace(new, "").replace("[candidates.plain]", f"{new}\n[candidates.plain]")
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        load_sweep(str(path), only=["simclr"], settings=["pretrain.lr=0.1"])


def test_a_field_that_the_objective_does_not_see_cannot_be_searched(tmp_path):
    path = tmp_path / "several.toml"
    path.write_text(SEVERAL.replace("temperature = {", '"finetune.dropout" = {'))
    settings = ['evaluate.protocols=["linear", "finetune"]']
    with pytest.raises(BadInput, match=r"finetune.dropout cannot be chosen by evaluate.objective 'linear'"):
        load_sweep(str(path), settings=settings)
    load_sweep(str(path), settings=[*settings, "evaluate.objective=finetune"])


def test_a_field_set_by_two_spellings_is_refused(tmp_path):
    path = tmp_path / "several.toml"
    path.write_text(
        SEVERAL.replace('"gamma.enabled" = false,', '"gamma.views" = "one", "method.gamma.views" = "both",')
    )
    with pytest.raises(BadInput, match=r"set of plain: something is named twice"):
        load_sweep(str(path))


def test_the_number_of_draws_on_the_command_line_holds_for_every_candidate(tmp_path):
    path = tmp_path / "several.toml"
    path.write_text(SEVERAL.replace("[candidates.simclr]", "[candidates.simclr]\ntrials = 9"))
    assert load_sweep(str(path)).draws("simclr") == 9
    assert load_sweep(str(path), settings=["search.trials=2"]).draws("simclr") == 2


def test_the_command_line_names_candidates(tmp_path):
    path = tmp_path / "several.toml"
    path.write_text(SEVERAL)
    with pytest.raises(BadInput, match=r"say of which candidate, as in CANDIDATE.FIELD=VALUE; there are: plain"):
        load_sweep(str(path), settings=["temperature=0.2"])
    with pytest.raises(UnknownName, match="did you mean 'plain'"):
        load_sweep(str(path), only=["plian"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"gamma.low"', '"gamma.lwo"', r"\[space\] no field is named 'gamma.lwo'; did you mean 'method.gamma.low'"),
        ('"pretrain.lr"', '"pretrain.rl"', r"no field is named 'pretrain.rl'; did you mean 'pretrain.lr'"),
        ("[0.3, 1.0]", "[0.3, 1.7]", r"gamma.low reaches 1.7, which is refused"),
        ("[0.3, 1.0]", "[0.9, 0.3]", r"low 0.9 is above high 0.3"),
        ("{ uniform = [0.3, 1.0] }", "{ unifrom = [0.3, 1.0] }", r"unknown key .*did you mean 'uniform'"),
        ("{ uniform = [0.3, 1.0] }", "{ choice = [] }", r"choice needs values"),
        ('method = "simclr"', 'method = "simclar"', r"no method is named 'simclar'; did you mean 'simclr'"),
        ("epochs = 4", "epochs = -1", r"pretrain.epochs: .*greater than or equal to 0 \(given: -1\)"),
        ("epochs = 4", 'backbone = "resnet81"', r"no encoder is named 'resnet81'; did you mean 'resnet18'"),
        ('datasets = ["leaves"]', 'datasets = ["leaves"]\nprotocols = ["liner"]', r"did you mean 'linear'"),
        ('datasets = ["leaves"]', "datasets = []", r"evaluate.datasets"),
        ('title = "q"', 'tilte = "q"', r"unknown key 'tilte'; did you mean 'title'"),
        ("[confirm]", "[confirm]\nseeds = [0, 1000]", r"training_seed 1000 is also in confirm.seeds"),
        ("[confirm]", "[resources]\nworkers = 3\n[confirm]", r"not a multiple of resources.workers 3"),
        ('name = "plain"', 'name = "simclr"', r"a name is used twice"),
        ("[confirm]", "[confirm]\nseeds = [-1]", r"confirm.seeds.0: .*greater than or equal to 0"),
        ("[confirm]", "[confirm]\nseeds = [1, 1]", r"confirm.seeds: something is named twice"),
        (
            '"gamma.low"',
            '"method.temperature" = { uniform = [0.1, 1] }\n"temperature"',
            r"space of simclr: something is named twice",
        ),
        ('"gamma.low"', '"crop.low" = { uniform = [0.1, 1] }\n"crop.high"', r"can draw .* which is refused: .*crop"),
        ('"gamma.low"', '"pretrain.epochs" = { uniform = [1, 4] }\n"gamma.low"', r"can draw .*valid integer"),
        ("uniform = [0.3, 1.0]", "uniform = [0.3, 1.0], step = 0.3", r"step 0.3 does not lead from 0.3 to 1.0"),
        ("[space]", "[space]\nhidden = { choice = [64, true] }", r"choice needs values of one type"),
        ("[profile.a.search]\ntrials = 3", "[profile]\na = 3", r"profile.a must be a table"),
        ('"gamma.enabled" = false', '"gamma.enable" = false', r"did you mean 'method.gamma.enabled'"),
    ],
)
def test_a_wrong_sweep_is_one_clear_error(sweep_file, old, new, message):
    assert old in SWEEP
    sweep_file.write_text(SWEEP.replace(old, new))
    with pytest.raises(BadInput, match=message) as error:
        load_sweep(str(sweep_file))
    assert "mine" in str(error.value) or "method" in str(error.value)


def test_an_unknown_sweep_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'simclr_gamma'"):
        load_sweep("simclr_gama")


def test_settings_are_toml_or_words():
    assert parse_setting("a.b=0.2") == ("a.b", 0.2)
    assert parse_setting("a=[1, 2]") == ("a", [1, 2])
    assert parse_setting("a=true") == ("a", True)
    assert parse_setting("a=../some/folder") == ("a", "../some/folder")
    with pytest.raises(BadInput, match="FIELD=VALUE"):
        parse_setting("temperature")


@pytest.mark.parametrize(("epochs", "rungs"), [(1, ()), (3, ()), (4, (3,)), (9, (3,)), (10, (3, 9)), (28, (3, 9, 27))])
def test_rungs_lie_before_the_last_epoch(epochs, rungs):
    assert Prune(grace=3, factor=3).rungs(epochs) == rungs
    assert Prune(scheduler="none").rungs(epochs) == ()
    assert Prune(scheduler="none").share(9, 18) == Prune(grace=3).share(3, 18) == Prune(grace=3).share(0, 18) == 1.0
    assert Prune(grace=3).share(27, 18) == (18 * 3 + 6 * 6 + 2 * 18) / (18 * 27)
    assert Prune(grace=2, factor=2.5).rungs(14) == (2, 5, 13)  # never before the pruner's own 12.5


def test_domains_become_distributions():
    assert Domain(integers=(1, 9), step=2).distribution().single() is False
    assert Domain(choice=("a", "b")).distribution().choices == ("a", "b")
    assert Domain(log_uniform=(1e-3, 1.0)).distribution().log
    assert str(Domain(uniform=(0.0, 1.0))) == "uniform [0.0, 1.0]"
