"""bench export: the same features before and after, in torchvision, in timm and in bench; which trial is meant."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from bench.cli import app
from bench.draw import mix
from bench.encoders import ENCODERS, OWN, Encoder, build_encoder
from bench.errors import BadInput
from bench.export import export_trial, load_encoder
from bench.registry import build, configure, find_method
from bench.results.ledger import Ledger
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table
from bench.training import checkpoint
from bench.trial import Evaluation, Training, Trial

SIZE = 32


def trained(
    out: Path, backbone: str, *, method: str = "simclr", seed: int = 0, status: str = "finished", **config: Any
) -> tuple[Trial, Encoder]:
    """A trial in the ledger of `out`, whose encoder has moments and weights unlike fresh ones."""
    trial = Trial(
        method=method,
        method_version=1,
        config=configure(method, config, "test").model_dump(mode="json"),
        data="f" * 64 if find_method(method).trains else "",
        training=Training(backbone=backbone, image_size=SIZE, precision="fp32"),
        evaluate=(Evaluation(fingerprint="f" * 64, metric="top1", protocols=("knn",)),),
        protocol_versions={"knn": 1},
        objective="knn",
        seed=seed,
    )
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, 1))
        encoder = build(method, trial.config, build_encoder(backbone, mix(seed, 0) % 2**31), 2).encoder
    if find_method(method).trains:
        with torch.no_grad():
            encoder.train()(torch.rand(8, 3, SIZE, SIZE))
            for parameter in encoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        folder = out / "trials" / trial.pretrain_id[:16]
        checkpoint.save(folder / "encoder.safetensors", checkpoint.module_tensors(encoder), {"epochs": []})
    facts = TrialFacts(
        trial_id=trial.id,
        pretrain_id=trial.pretrain_id,
        membership=Membership(sweep="q", sweep_id="1" * 64, stage="confirm", configuration=method, role="best"),
        configuration_id=trial.configuration_id,
        method=method,
        encoder=backbone,
        seed=seed,
        status=status,  # type: ignore[arg-type]
        error="it broke" if status == "failed" else None,
        config=trial.model_dump(mode="json"),
        pretrain_dataset="leaves" if trial.data else None,
        git_commit="c" * 40,
        git_dirty=True,
        versions={"torch": "9.9"},
        device="cpu",
    )
    scores = [
        Measurement(
            dataset="leaves", protocol="knn", split=split, metric="top1", value=value, headline=True, samples=400,
            low=value - 0.05, high=value + 0.05, variant="k=20",
        )
        for split, value in (("val", 0.99), ("test", 0.625))
    ]  # fmt: skip
    Ledger(out).write(rows_table(facts, scores if status == "finished" else []))
    return trial, encoder.eval()


def pictures() -> torch.Tensor:
    return torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != OWN])
def test_features_are_the_same_after_the_export(tmp_path, name):
    """With bench's loader, and with the card's own snippets: torchvision's asserts that fc alone is missing."""
    if name.startswith("vit"):
        pytest.importorskip("timm")
    trial, encoder = trained(tmp_path / "out", name)
    export_trial(tmp_path / "out", trial.id[:8], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["feature_dim"] == encoder.dim
    assert config["input"]["std"] == pytest.approx(encoder.std.flatten().tolist())
    snippets = re.findall(r"```python\n(.*?)```", (tmp_path / "model" / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == (1 if name == "small" else 2)
    for code in snippets:
        scope: dict[str, Any] = {"images": pictures()}
        with torch.no_grad():
            exec(code.replace('"."', repr(str(tmp_path / "model"))).replace('"./', f'"{tmp_path}/model/'), scope)
            assert torch.allclose(scope["features"], encoder(pictures()), atol=1e-5)
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "model")(pictures()), encoder(pictures()))


@pytest.mark.parametrize("config", [{"encoder": "generator", "removed": 1}, {"encoder": "discriminator"}])
def test_an_encoder_of_a_methods_own_is_exported(tmp_path, config):
    trial, encoder = trained(tmp_path / "out", OWN, method="srgan", content="mse", blocks=2, **config)
    export_trial(tmp_path / "out", "srgan", tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "model")(pictures()), encoder(pictures()))
    assert trial.id in (tmp_path / "model" / "README.md").read_text()


def test_an_encoder_that_sees_gray_says_so_and_its_loader_does_it(tmp_path):
    _, encoder = trained(tmp_path / "out", "resnet18", method="colorization")
    export_trial(tmp_path / "out", "colorization", tmp_path / "model")
    assert encoder.see is not None
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "model")(pictures()), encoder(pictures()))
    assert "L / 100, in all three channels" in (tmp_path / "model" / "README.md").read_text()


def test_a_control_that_trained_nothing_is_exported(tmp_path):
    _, encoder = trained(tmp_path / "out", "small", method="random_init", seed=5)
    export_trial(tmp_path / "out", "random_init", tmp_path / "model", seed=5)
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path / "model")(pictures()), encoder(pictures()))
    assert "It was trained on no data." in (tmp_path / "model" / "README.md").read_text()


def test_timms_own_small_vit_takes_the_tensors(tmp_path):
    timm = pytest.importorskip("timm")
    trial, encoder = trained(tmp_path / "out", "vit_s16")
    export_trial(tmp_path / "out", trial.id, tmp_path / "model")
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0, "img_size": SIZE}
    model = timm.create_model("vit_small_patch16_224", pretrained=False, **options)
    model.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    with torch.no_grad():
        normalised = (pictures() - encoder.mean) / encoder.std
        assert torch.allclose(model.eval()(normalised), encoder(pictures()), atol=1e-5)


def test_the_card_says_what_it_is_and_what_it_saw(tmp_path):
    trial, _ = trained(tmp_path / "out", "resnet18", seed=7)
    shown = CliRunner().invoke(
        app, ["export", trial.id[:6], "--to", str(tmp_path / "m"), "--out", str(tmp_path / "out")]
    )
    assert shown.exit_code == 0, shown.output
    assert "simclr, seed 7" in shown.output
    text = (tmp_path / "m" / "README.md").read_text()
    assert "| leaves | knn k=20 | top1 | 62.5% | 57.5% to 67.5% | 400 |" in text
    assert "99" not in text.split("## Scores")[1].split("##")[0]  # validation scores are no result
    for words in ("generated, no restriction", "f" * 64, "seed 7", "c" * 40, "uncommitted", "torch 9.9", trial.id):
        assert words in text
    assert json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL).group(1))["config"] == trial.config


def test_which_trial_is_meant(tmp_path):
    out = tmp_path / "out"
    first, _ = trained(out, "small", seed=1)
    second, _ = trained(out, "small", seed=2)
    broken, _ = trained(out, "small", method="byol", seed=3, status="failed")
    with pytest.raises(BadInput, match="is 2 trials; name one") as several:
        export_trial(out, "simclr", tmp_path / "m")
    assert {first.id[:12], second.id[:12]} <= set(str(several.value).split())
    assert export_trial(out, "simclr", tmp_path / "m", seed=2).trial_id == second.id
    for reference, words in (
        ("simclear", "did you mean 'simclr'"),
        ("nothing like it", "there are: byol, simclr$"),  # and not every trial's id
        (first.id[:7] + ("0" if first.id[7] != "0" else "1"), f"did you mean {first.id[:8]!r}"),
        ("byol", "the trial is failed"),
        (broken.id[:9], "the trial is failed"),
    ):
        with pytest.raises(BadInput, match=words):
            export_trial(out, reference, tmp_path / "m")
    with pytest.raises(BadInput, match="has no seed 9; there are: 1, 2"):
        export_trial(out, "simclr", tmp_path / "m", seed=9)
    with pytest.raises(BadInput, match="no results"):
        export_trial(tmp_path / "empty", "simclr", tmp_path / "m")
    (out / "trials" / first.pretrain_id[:16] / "encoder.safetensors").unlink()
    with pytest.raises(BadInput, match="weights are gone"):
        export_trial(out, first.id, tmp_path / "m")


def test_an_ambiguous_reference_lists_the_trials(tmp_path):
    for seed in range(10):
        trained(tmp_path / "out", "small", method="random_init", seed=seed)
    with pytest.raises(BadInput, match=r"(?s)10 trials.*\.\.\. 2 more") as several:
        export_trial(tmp_path / "out", "random_init", tmp_path / "m")
    assert len(str(several.value).splitlines()) == 10


def test_loading_runs_no_code_and_refuses_what_is_no_export(tmp_path):
    trial, _ = trained(tmp_path / "out", "small")
    export_trial(tmp_path / "out", trial.id, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    for change, words in (
        ({"method": "evil.code"}, "nothing is imported for a file"),
        ({"format": 99}, "format 99"),
        ({"architecture": "resnet18"}, "not the weights of resnet18"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(BadInput, match=words):
            load_encoder(tmp_path / "m")
    path.write_text(json.dumps(config))
    (tmp_path / "m" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(BadInput, match="not an exported encoder"):
        load_encoder(tmp_path / "m")


def test_help_stays_quick():
    code = "import sys, bench.cli; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
