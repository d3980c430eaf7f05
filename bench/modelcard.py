"""The model card of an exported encoder: what it is, what it saw, how good it is, how to load it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cards import card_paths
from bench.data.card import DatasetCard, read_card
from bench.encoders import ENCODERS
from bench.errors import BadInput
from bench.registry import find_method

if TYPE_CHECKING:
    import pandas as pd

OWN = """
from bench.export import load_encoder

encoder = load_encoder("{folder}")
features = encoder(images)  # [B,{dim}] of float images [B,3,H,W] in 0..1
"""
TORCHVISION = """
import torch
from safetensors.torch import load_file
from torchvision.models import {name}

model = {name}(weights=None)
missing, unexpected = model.load_state_dict(load_file("{folder}/model.safetensors"), strict=False)
assert set(missing) == {{"fc.weight", "fc.bias"}} and not unexpected
model.fc = torch.nn.Identity()
model.eval()
mean = torch.tensor({mean}).view(1, 3, 1, 1)
std = torch.tensor({std}).view(1, 3, 1, 1)
features = model((images - mean) / std)  # [B,{dim}] of float images [B,3,H,W] in 0..1
"""
TIMM = """
import torch
from safetensors.torch import load_file
from timm.models import VisionTransformer

model = VisionTransformer(
    img_size={size}, patch_size={patch}, embed_dim={dim}, depth={depth}, num_heads={heads},
    class_token=False, global_pool="avg", fc_norm=False, num_classes=0,
)
model.load_state_dict(load_file("{folder}/model.safetensors"))
model.eval()
mean = torch.tensor({mean}).view(1, 3, 1, 1)
std = torch.tensor({std}).view(1, 3, 1, 1)
features = model((images - mean) / std)  # [B,{dim}] of float images [B,3,{size},{size}] in 0..1
"""
GRAY = (
    "The encoder saw gray pictures: give it CIE lightness, L / 100, in all three channels. "
    "`load_encoder` does that itself, the model of another library does not."
)


def model_card(out: Path, rows: "pd.DataFrame", trial: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The card in Markdown; `rows` are the trial's ledger rows, `config` is what `config.json` holds."""
    sections = {
        "Load it": _loading(config),
        "What it is": _facts(rows, trial, config),
        "Scores": _scores(rows),
        "Data and terms": _data(rows, trial),
        "Hyperparameters": ["```json", json.dumps({k: trial[k] for k in ("config", "training")}, indent=1), "```"],
        "Where it comes from": _origin(rows, trial),
    }
    first = rows.iloc[0]
    lines = [f"# {first['encoder']} pretrained by {first['method']}", "", _question(out, str(first["sweep_id"]))]
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def snippet(config: Mapping[str, Any], *, own: bool = False, folder: str = ".") -> str:
    """Python that loads the export in `folder` and turns `images` into `features`; `own`: with bench's loader."""
    form = OWN if own else {"torchvision": TORCHVISION, "timm": TIMM}.get(config["library"], OWN)
    return form.format(
        name=config["architecture"],
        folder=folder,
        dim=config["feature_dim"],
        size=config["image_size"],
        mean=config["input"]["mean"],
        std=config["input"]["std"],
        **{key: config.get(name) for key, name in (("patch", "patch_size"), ("depth", "depth"), ("heads", "heads"))},
    ).strip()


def _loading(config: Mapping[str, Any]) -> list[str]:
    lines = [f"With {config['library']}; the code runs in this folder:", "", "```python", snippet(config), "```"]
    if config["library"] != "bench":
        lines += ["", "Or with bench:", "", "```python", snippet(config, own=True), "```"]
    return [*lines, "", GRAY] if config["sees_gray"] else lines


def _facts(rows: "pd.DataFrame", trial: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    first, training = rows.iloc[0], trial["training"]
    summary = find_method(trial["method"]).summary
    return [
        f"- encoder: {first['encoder']} ({ENCODERS[config['architecture']].summary})",
        f"- method: {first['method']}, version {trial['method_version']} ({summary})",
        f"- trained on: {first['pretrain_dataset'] or 'nothing'}, {training['epochs']} epochs of views of "
        f"{training['image_size']} px, batch {training['batch_size']}, {training['precision']}, seed {trial['seed']}",
        f"- input: RGB in 0..1, then normalised by mean {config['input']['mean']} and std {config['input']['std']}",
        f"- output: {config['feature_dim']} features, averaged over the last map",
    ]


def _scores(rows: "pd.DataFrame") -> list[str]:
    """Headline test scores; probe settings were chosen on validation."""
    test = rows[(rows["split"] == "test") & rows["headline"] & rows["value"].notna()]
    if test.empty:
        return ["The ledger holds no test score of it."]
    lines = [
        "| dataset | protocol | metric | test score | 95 % interval | images |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in test.to_dict("records"):
        name = f"{row['protocol']} {row['variant']}".strip()
        interval = "" if math.isnan(row["low"]) else f"{row['low']:.1%} to {row['high']:.1%}"
        score = f"{row['metric']} | {row['value']:.1%} | {interval} | {row['samples']}"
        lines.append(f"| {row['dataset']} | {name} | {score} |")
    note = "One seed: the interval is over test images (bootstrap) and does not hold what another seed would change."
    return [*lines, "", note]


def _data(rows: "pd.DataFrame", trial: Mapping[str, Any]) -> list[str]:
    """The terms of the data that the encoder learned from, as their card says."""
    name = rows["pretrain_dataset"].iloc[0]
    if not trial["data"]:
        return ["It was trained on no data."] if trial["method"] == "random_init" else ["bench trained it on no data."]
    lines = [f"- pretraining images: {name}, fingerprint {trial['data']}"]
    card = _card(str(name))
    if card is None:
        return [*lines, "- terms: no card says; ask whoever gave you the images before you pass the weights on"]
    lines += [f"- terms: {card.licence}", f"- to be cited: {card.citation}"]
    return [*lines, f"- homepage: {card.homepage}"] if card.homepage else lines


def _card(name: str) -> DatasetCard | None:
    path = card_paths("datasets").get(name.partition("?")[0])
    try:
        return read_card(path) if path else None
    except BadInput:
        return None


def _origin(rows: "pd.DataFrame", trial: Mapping[str, Any]) -> list[str]:
    first = rows.iloc[0]
    versions = json.loads(first["versions"] or "{}")
    dirty = " (with uncommitted changes)" if rows["git_dirty"].fillna(False).iloc[0] else ""
    return [
        f"- trial: {first['trial_id']}",
        f"- sweep: {first['sweep']}, {first['stage']}, configuration {first['configuration']}, seed {trial['seed']}",
        f"- commit: {first['git_commit'] or 'not recorded'}{dirty}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}",
        f"- device: {first['device']}",
    ]


def _question(out: Path, sweep_id: str) -> str:
    from bench.results.questions import sweep_records

    title = sweep_records(out).get(sweep_id, {}).get("title")
    return f"From a study that asks: {title}" if title else "From a study with bench."
