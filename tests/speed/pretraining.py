"""SimCLR pretraining on the CPU from a real folder: ours beside lightly's pipeline, and beside the model alone.

Both train the same network (encoder, projection head, NT-Xent, AdamW) with the same views, batch and precision.
lightly's pipeline is what its documentation has people write: SimCLRTransform in a DataLoader with worker
processes that decode the files in every epoch, and its NTXentLoss. Ours reads the pack (built once, before). The
model alone is one forward, backward and update after another on views that are at hand.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bench.cache import cache_folder
from bench.data.dataset import resolve
from bench.data.pack import Pack, open_pack, pack_size
from bench.draw import Draw
from bench.encoders import build_encoder
from bench.method import Method
from bench.registry import build
from bench.training.optimisers import build_optimizer
from bench.training.pretrain import pretrain
from bench.trial import Training
from tests.speed.figures import Apart, Figure, alternate, main, ratio

SIZE, BATCH, STEPS = 64, 128, 8  # as many as the whole folder of coffee leaves gives
GOALS = {"resnet18": 1.25, "small": 4.0}
OFF = {"gamma": {"enabled": False}}


def settings(backbone: str) -> Training:
    """One epoch with this encoder."""
    return Training(backbone=backbone, image_size=SIZE, epochs=1, batch_size=BATCH, precision="fp32")


def fresh(backbone: str) -> Method:
    """A new SimCLR on an untrained encoder."""
    return build("simclr", OFF, build_encoder(backbone, 0)).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def ours(backbone: str, data: str) -> Callable[[], float]:
    """The seconds of an epoch of STEPS steps by the engine, without its checkpoint: lightly's pipeline writes none."""
    method, pack = fresh(backbone), photographs(data)

    def epoch() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return pretrain(method, pack, settings(backbone), 0, state=Path(folder) / "state").seconds

    return epoch


def model_alone(backbone: str, data: str) -> Callable[[], object]:
    """STEPS forward and backward passes on one batch of views."""
    method, pack = fresh(backbone), photographs(data)
    with torch.no_grad():
        views = method.views(pack.batch(pack.pretraining_rows()[:BATCH]), Draw(0, BATCH), SIZE)
    views = tuple(view.contiguous(memory_format=torch.channels_last) for view in views)

    def epoch() -> None:
        for _ in range(STEPS):
            method.zero_grad(set_to_none=True)
            method.losses(views, 0.0)["loss"].backward()

    return epoch


def lightly_pipeline(backbone: str, data: str) -> Callable[[], object]:
    """STEPS steps of lightly's transform, loader and loss on the same files."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    transform = SimCLRTransform(input_size=SIZE, cj_strength=0.5, gaussian_blur=0.0, normalize=None)

    pack = photographs(data)
    files = [str(Path(pack.source.location) / file) for file in pack.files]

    class Photographs(Dataset[list[torch.Tensor]]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, row: int) -> list[torch.Tensor]:
            with Image.open(files[row]) as image:
                views: list[torch.Tensor] = transform(image.convert("RGB"))
            return views

    encoder = build_encoder(backbone, 0)
    network = nn.Sequential(encoder, SimCLRProjectionHead(encoder.dim, encoder.dim, 128))
    loss, optimizer = NTXentLoss(temperature=0.2), build_optimizer(settings(backbone), list(network.parameters()))
    loader = DataLoader(
        Photographs(),
        batch_size=BATCH,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork",  # as it starts them by itself in a script on Linux
    )

    def epoch() -> None:
        for first, second in loader:
            loss(network(first), network(second)).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def measure(arguments: argparse.Namespace) -> Sequence[Figure]:
    """Images per second of each, for a ResNet-18 and for the small encoder; each in a process of its own."""
    photographs(arguments.data)  # packed once, before
    figures = []
    for backbone, goal in GOALS.items():
        with (
            Apart(ours, backbone, arguments.data, kept=True) as engine,
            Apart(lightly_pipeline, backbone, arguments.data, kept=False) as peer,
            Apart(model_alone, backbone, arguments.data, kept=True) as model,
        ):
            taken = alternate({"ours": engine, "lightly": peer, "model": model}, arguments.repeats)
        speeds = {name: f"{BATCH * STEPS / one.seconds:,.0f} images/s" for name, one in taken.items()}
        where = f"{SIZE} px, batch {BATCH}, fp32, {torch.get_num_threads()} threads, decoded anew by 2 loader processes"
        figures += [
            Figure(
                f"SimCLR pretraining, CPU, {backbone}, against lightly",
                f"ours {speeds['ours']}, lightly {speeds['lightly']}; {where}",
                ratio(taken["lightly"], taken["ours"]),
                "x",
                goal,
            ),
            Figure(
                f"SimCLR pretraining, CPU, {backbone}, share of the model alone",
                f"ours {speeds['ours']}, forward and backward alone, without an optimiser, {speeds['model']}",
                ratio(taken["model"], taken["ours"]),
                "share",
                0.9,
            ),
        ]
    return figures


def photographs(data: str) -> Pack:
    """The first images of a folder, all for pretraining: as many as an epoch takes."""
    pack = open_pack(resolve(data).source, pack_size(SIZE), cache_folder())
    rows = pack.pretraining_rows()[: BATCH * STEPS]
    return replace(
        pack,
        images=pack.images[rows].clone(),
        aspect=pack.aspect[rows],
        labels=pack.labels[rows],
        splits=torch.full((len(rows),), 0),
        files=tuple(pack.files[row] for row in rows),
    )


if __name__ == "__main__":
    main(measure, "SimCLR pretraining on the CPU", repeats=3)
