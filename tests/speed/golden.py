"""Losses at full precision before and after a change that should make things faster and change nothing else.

python -m tests.speed.golden --to before.json           before the change
python -m tests.speed.golden --against before.json      after it; exit code 1 names the first losses that differ

Every method trains on real-sized views with the engine, the ResNet-18 as well as the encoder that it has by default.
The figures are those of one machine and its versions of the libraries: no file of them is kept in the repository.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from bench.encoders import build_encoder
from bench.registry import build
from bench.training.pretrain import pretrain
from bench.trial import Training
from tests.test_methods import TRAINED, make, pictures

SIZE, BATCH = 64, 48
IMAGES = 2 * BATCH


def losses(name: str, backbone: str | None) -> dict[str, str]:
    """Every loss of two epochs of two steps, exact: in hexadecimal digits, by "epoch name"."""
    if backbone:
        torch.manual_seed(0)
        method = build(name, {}, build_encoder(backbone, 0), 3)
    else:
        method = make(name)
    training = Training(image_size=SIZE, epochs=2, batch_size=BATCH, precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        history = pretrain(method, pictures(IMAGES, BATCH, 24), training, 7, state=Path(folder) / "state")
    return {f"{epoch.number} {key}": value.hex() for epoch in history.epochs for key, value in epoch.figures.items()}


def main() -> None:
    """Write the losses of every method, or compare them with those written before."""
    parser = argparse.ArgumentParser(description="losses at full precision, before and after a change")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", type=Path, help="write them to this file")
    where.add_argument("--against", type=Path, help="compare them with those of this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[tuple[str, str | None]] = [*((name, None) for name in TRAINED), ("simclr", "resnet18")]
    found = {f"{name} {backbone or ''}".strip(): losses(name, backbone) for name, backbone in runs}
    if arguments.to:
        arguments.to.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return
    before = json.loads(arguments.against.read_text(encoding="utf-8"))
    changed = [name for name in before | found if before.get(name) != found.get(name)]
    for name in changed:
        print(f"{name}: {_shown(before.get(name))} before, {_shown(found.get(name))} now")
    print(f"{len(found) - len(changed)} of {len(found)} as before")
    sys.exit(bool(changed))


def _shown(run: dict[str, str] | None) -> str:
    return ", ".join(f"{key} {float.fromhex(value)!r}" for key, value in run.items()) if run else "not there"


if __name__ == "__main__":
    main()
