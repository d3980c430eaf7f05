"""A trained encoder as files that others load: safetensors under the names of torchvision or timm, with a model card.

| encoder | loads in | what is different there |
| --- | --- | --- |
| resnet18, resnet34, resnet50 | `torchvision.models` | `fc` is left out |
| vit_s16, vit_micro | `timm.models.VisionTransformer` | the fixed positions of one image size are a tensor |
| small, and a method's own | `load_encoder` below | nothing |

The normalisation is the encoder's own first step in bench and the user's elsewhere, so `config.json` gives it.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench import mirror
from bench.draw import mix
from bench.encoders import IMAGENET_MEAN, IMAGENET_STD, Encoder, VisionTransformer, build_encoder, sine_positions
from bench.errors import BadInput, suggestion
from bench.registry import build, find_method
from bench.results.ledger import Ledger
from bench.training import checkpoint

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TORCHVISION = ("resnet18", "resnet34", "resnet50")
_COLUMNS = ["trial_id", "sweep", "stage", "configuration", "seed", "status"]
_BLOCK = {  # of a transformer's block: torchvision's name -> timm's
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "self_attention.out_proj": "attn.proj",
}
_SHOWN = 8


@dataclass(frozen=True)
class Exported:
    """What was written: the trial, its name for people, and the size of the weights in bytes."""

    trial_id: str
    label: str
    size: int


def export_trial(out: Path, reference: str, to: Path, *, seed: int | None = None, sweep: str | None = None) -> Exported:
    """Write the encoder of a finished trial under `out` to the folder `to`: weights, configuration and model card.

    `reference`: the start of a trial's id, or a configuration's name, which needs `seed` where it has several.
    Raises UnknownName or BadInput for what is no trial, or several; runs no code from the results.
    """
    from bench.modelcard import model_card

    rows = _rows(out, find_trial(out, reference, seed=seed, sweep=sweep))
    trial = json.loads(rows["config"].iloc[0])
    encoder = trained_encoder(out, str(rows["pretrain_id"].iloc[0]), trial)
    tensors = portable(encoder, trial["training"]["image_size"])
    config = _config(encoder, trial)
    to.mkdir(parents=True, exist_ok=True)
    _write(to / CONFIG, json.dumps(config, indent=1) + "\n")
    _write(to / CARD, model_card(out, rows, trial, config))
    temporary = to / f".{MODEL}.{os.getpid()}"
    save_file(tensors, temporary, {"format": "pt"})
    size = temporary.stat().st_size
    temporary.replace(to / MODEL)
    first = rows.iloc[0]
    return Exported(str(first["trial_id"]), f"{first['configuration']}, seed {first['seed']}", size)


def find_trial(out: Path, reference: str, *, seed: int | None = None, sweep: str | None = None) -> str:
    """The id of the one finished trial that `reference` means; see `export_trial`."""
    frame = Ledger(out).read(sweep, columns=_COLUMNS, depth="first").frame
    if frame.empty:
        raise BadInput(f"{out}: no results" + (f" of sweep {sweep!r}" if sweep else ""))
    named = frame[frame["configuration"] == reference]
    hexadecimal = re.fullmatch(r"[0-9a-f]{4,64}", reference)
    found = named if len(named) or not hexadecimal else frame[frame["trial_id"].str.startswith(reference)]
    if found.empty:
        known = [*frame["configuration"].unique()]
        if hexadecimal:  # who mistypes an id is not helped by names, nor who mistypes a name by all ids
            known = [*frame["trial_id"].str[: max(8, len(reference))].unique()]
        raise BadInput(f"{out}: no trial's id or configuration is {reference!r}{suggestion(reference, known)}")
    if seed is not None:
        seeds = sorted(found["seed"].unique())
        found = found[found["seed"] == seed]
        if found.empty:
            raise BadInput(f"{reference!r} has no seed {seed}; there are: {', '.join(map(str, seeds))}")
    finished = found[found["status"] == "finished"].drop_duplicates("trial_id")
    if finished.empty:
        raise BadInput(f"{reference!r}: the trial is {found['status'].iloc[0]}, only a finished one has an encoder")
    if len(finished) > 1:
        raise BadInput(f"{reference!r} is {len(finished)} trials; name one:\n{_lines(finished)}")
    return str(finished["trial_id"].iloc[0])


def trained_encoder(out: Path, pretrain_id: str, trial: Mapping[str, Any]) -> Encoder:
    """The encoder of a trial as it was evaluated, on the CPU. Raises BadInput where its weights are gone."""
    saved = out / "trials" / pretrain_id[:16] / "encoder.safetensors"
    encoder = _empty(trial["method"], trial["config"], trial["training"]["backbone"], trial["seed"])
    if mirror.fetch(saved):
        tensors, _ = checkpoint.load(saved)
        checkpoint.restore_module(encoder, tensors)
    elif find_method(trial["method"]).trains:
        raise BadInput(f"{mirror.address(saved)}: the trial's weights are gone; `bench run --force` makes them again")
    return encoder.eval()


def load_encoder(folder: Path | str) -> Encoder:
    """The encoder of an exported folder: float images `[B,3,H,W]` in 0..1 -> features `[B,D]`. Runs no code from it.

    Raises BadInput for a folder that is no export, and for a method from outside bench with an encoder of its own.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / MODEL)
    except (OSError, ValueError, SafetensorError) as error:
        raise BadInput(f"{folder}: not an exported encoder: {error}") from None
    if config.get("format") != FORMAT:
        raise BadInput(f"{folder / CONFIG}: format {config.get('format')}, this version reads {FORMAT}")
    if "." in config["method"]:
        raise BadInput(f"{folder}: method {config['method']!r} is not part of bench: nothing is imported for a file")
    encoder = _empty(config["method"], config["method_config"], config["architecture"], 0)
    try:
        encoder.load_state_dict(_own_names(encoder, tensors))
    except (RuntimeError, KeyError) as error:
        raise BadInput(f"{folder / MODEL}: not the weights of {config['architecture']}: {error}") from None
    return encoder.eval()


def portable(encoder: Encoder, image_size: int) -> dict[str, Tensor]:
    """The encoder's tensors under torchvision's or timm's names; a transformer's positions for `image_size` px."""
    if isinstance(encoder, VisionTransformer):
        return _timm_tensors(encoder, image_size)
    state = {name.removeprefix("trunk."): tensor for name, tensor in encoder.state_dict().items()}
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _empty(method: str, config: Mapping[str, Any], backbone: str, seed: int) -> Encoder:
    """The encoder as a trial begins with it."""
    encoder = build_encoder(backbone, mix(seed, 0) % 2**31)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(seed, 1))
        return build(method, config, encoder, classes=2).encoder  # how many classes there are is not the encoder's


def _timm_tensors(encoder: VisionTransformer, image_size: int) -> dict[str, Tensor]:
    side = image_size // encoder.patch
    tensors = {"pos_embed": sine_positions(side, side, encoder.width, torch.device("cpu"))[None]}
    for name, tensor in encoder.trunk.state_dict().items():
        tensors[_timm_name(name, len(encoder.trunk.blocks1))] = tensor  # type: ignore[arg-type]
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _timm_name(name: str, each: int) -> str:
    """The name of one of our tensors in timm; `each`: blocks in a stage."""
    if name.startswith("patches."):
        return name.replace("patches.", "patch_embed.proj.")
    block = re.fullmatch(r"blocks(\d+)\.(\d+)\.(.+)", name)
    if block is None:
        return name  # the last norm
    number, rest = (int(block[1]) - 1) * each + int(block[2]), block[3]
    for ours, theirs in _BLOCK.items():
        rest = rest.replace(f"{ours}.", f"{theirs}.") if rest.startswith(f"{ours}.") else rest
    rest = rest.replace("self_attention.in_proj_", "attn.qkv.")
    return f"blocks.{number}.{rest}"


def _own_names(encoder: Encoder, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `portable`."""
    if not isinstance(encoder, VisionTransformer):
        return {f"trunk.{name}": tensor for name, tensor in tensors.items()}
    each = len(encoder.trunk.blocks1)  # type: ignore[arg-type]
    return {f"trunk.{name}": tensors[_timm_name(name, each)] for name in encoder.trunk.state_dict()}


def _config(encoder: Encoder, trial: Mapping[str, Any]) -> dict[str, Any]:
    """What someone needs to use the weights; everything is data."""
    name = trial["training"]["backbone"]
    transformer = isinstance(encoder, VisionTransformer)
    return {
        "format": FORMAT,
        "architecture": name,
        "library": "torchvision" if name in TORCHVISION else "timm" if transformer else "bench",
        "image_size": trial["training"]["image_size"],
        "feature_dim": encoder.dim,
        "input": {"range": [0.0, 1.0], "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "sees_gray": encoder.see is not None,
        "method": trial["method"],
        "method_config": trial["config"],
        **({"patch_size": encoder.patch, "heads": encoder.heads, **_shape(encoder)} if transformer else {}),
    }


def _shape(encoder: Encoder) -> dict[str, int]:
    return {"embed_dim": encoder.dim, "depth": sum(len(getattr(encoder.trunk, f"blocks{n}")) for n in range(1, 5))}


def _rows(out: Path, trial_id: str) -> "pd.DataFrame":
    """The rows of one record of a finished trial, which several sweeps and stages may have asked for."""
    frame = Ledger(out).read().frame
    rows = frame[(frame["trial_id"] == trial_id) & (frame["status"] == "finished")]
    first = rows.iloc[0]
    same: pd.DataFrame = rows[(rows["sweep_id"] == first["sweep_id"]) & (rows["stage"] == first["stage"])]
    return same


def _lines(trials: "pd.DataFrame") -> str:
    shown = [
        f"  {row['trial_id'][:12]}  {row['sweep']}: {row['configuration']}, {row['stage']}, seed {row['seed']}"
        for row in trials.head(_SHOWN).to_dict("records")
    ]
    return "\n".join([*shown, f"  ... {len(trials) - _SHOWN} more"] if len(trials) > _SHOWN else shown)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
