"""On one GPU, 224 px, bf16: SimCLR beside the model alone and beside lightly's pipeline, Barlow Twins on a ViT-S/16
beside the published figure, the share of the views in a step, and the gain of small trials that share the GPU.

Without a GPU every line reads "not measured". `--device cpu --size 32 --batch 16` tries the code without one.

python -m tests.speed.gpu
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bench.cache import cache_folder
from bench.data.dataset import resolve
from bench.data.pack import Pack, open_pack, pack_size
from bench.draw import Draw
from bench.encoders import build_encoder
from bench.method import Method
from bench.registry import build
from bench.training.pretrain import build_optimizers, train_batch
from bench.training.step import autocast
from bench.trial import Training
from tests.speed import sweeps
from tests.speed.figures import Figure, Taken, alternate, main, ratio

STEPS, LOADERS = 20, 16
PUBLISHED = (
    870.9  # samples/s of Barlow Twins, ViT-S/16, 224 px, batch 256 on one H200 (stable-pretraining's benchmarks)
)
BARLOW = ("barlow_twins", "vit_s16")
SIMCLR = {"resnet18": 4.0, "resnet50": 1.5}  # encoder: goal against lightly
WITHOUT = "no GPU at hand"


class OnDevice:
    """A method in training on one device: steps of the engine, and of the model alone."""

    def __init__(self, name: str, backbone: str, pack: Pack, size: int, batch: int, device: str) -> None:
        precision = "bf16" if device == "cuda" else "fp32"
        self.training = Training(backbone=backbone, image_size=size, epochs=1, batch_size=batch, precision=precision)
        method: Method = build(name, {}, build_encoder(backbone, 0))
        self.method = method.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizers = build_optimizers(self.method, self.training)
        self.pack, self.rows, self.device = pack.on(device), pack.pretraining_rows()[:batch], device
        self.fixed = self.views(0)

    def views(self, number: int) -> tuple[Tensor, ...]:
        """A batch of views."""
        draw = Draw(number, len(self.rows), device=self.device)
        with torch.no_grad():
            made = self.method.views(self.pack.batch(self.rows, self.device), draw, self.training.image_size)
        return tuple(view.contiguous(memory_format=torch.channels_last) for view in made)

    def steps(self, count: int = STEPS) -> None:
        """`count` steps of the engine."""
        for number in range(count):
            images, draw = self.pack.batch(self.rows, self.device), Draw(number, len(self.rows), device=self.device)
            list(train_batch(self.method, self.optimizers, self.training, images, draw, 0.5, 1e-4))
        self.wait()

    def alone(self, count: int = STEPS) -> None:
        """`count` forward and backward passes on the same views."""
        for _ in range(count):
            self.method.zero_grad(set_to_none=True)
            with autocast(self.training.precision, torch.device(self.device)):
                loss = self.method.losses(self.fixed, 0.5)["loss"]
            loss.backward()
        self.wait()

    def only_views(self, count: int = STEPS) -> None:
        """`count` batches of views."""
        for number in range(count):
            self.views(number)
        self.wait()

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def lightly_steps(
    backbone: str, files: Sequence[str], size: int, batch: int, device: str, loaders: int
) -> Callable[[], None]:
    """STEPS steps of lightly's transform, loader and loss, the files decoded anew by loader processes."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    transform = SimCLRTransform(input_size=size, cj_strength=0.5, gaussian_blur=0.0, normalize=None)

    class Photographs(Dataset[list[Tensor]]):
        def __len__(self) -> int:
            return batch * STEPS

        def __getitem__(self, row: int) -> list[Tensor]:
            with Image.open(files[row % len(files)]) as image:
                views: list[Tensor] = transform(image.convert("RGB"))
            return views

    encoder = build_encoder(backbone, 0)
    network = torch.nn.Sequential(encoder, SimCLRProjectionHead(encoder.dim, encoder.dim, 128))
    network = network.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    loss, optimizer = NTXentLoss(temperature=0.2), torch.optim.AdamW(network.parameters(), lr=1e-4)
    loader = DataLoader(
        Photographs(), batch, num_workers=loaders, pin_memory=device == "cuda", persistent_workers=loaders > 0
    )

    def epoch() -> None:
        for pair in loader:
            first, second = (view.to(device, non_blocking=True) for view in pair)
            with autocast("bf16" if device == "cuda" else "fp32", torch.device(device)):
                value = loss(network(first), network(second))
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return epoch


def measure(arguments: argparse.Namespace, device: str, size: int, batch: int, loaders: int) -> Sequence[Figure]:
    """Every line; each "not measured" where there is no GPU."""
    if device == "none":
        return unmeasured()
    source = resolve(arguments.data).source
    pack = open_pack(source, pack_size(size), cache_folder())
    files = [str(Path(source.location) / pack.files[row]) for row in pack.pretraining_rows()]
    begin = partial(OnDevice, pack=pack, size=size, batch=batch, device=device)
    figures: list[Figure] = []
    for backbone, goal in SIMCLR.items():
        ours = begin("simclr", backbone)
        taken = alternate(
            {
                "ours": ours.steps,
                "model": ours.alone,
                "lightly": lightly_steps(backbone, files, size, batch, device, loaders),
            },
            arguments.repeats,
        )
        figures += simclr(backbone, goal, taken, batch)
        if backbone == "resnet18":
            figures.append(views(ours, arguments.repeats))
    figures.append(barlow(begin(*BARLOW), batch, arguments.repeats))
    return [*figures, sharing()] if device == "cuda" else figures


def simclr(backbone: str, goal: float, taken: dict[str, Taken], batch: int) -> list[Figure]:
    """Its two lines."""
    speed = {name: f"{batch * STEPS / one.seconds:,.0f} images/s" for name, one in taken.items()}
    share, against = names(backbone)
    return [
        Figure(
            share, f"ours {speed['ours']}, alone {speed['model']}", ratio(taken["model"], taken["ours"]), "share", 0.95
        ),
        Figure(
            against,
            f"ours {speed['ours']}, lightly {speed['lightly']}",
            ratio(taken["lightly"], taken["ours"]),
            "x",
            goal,
        ),
    ]


def names(backbone: str) -> tuple[str, str]:
    """What the two lines of an encoder measure."""
    what = f"SimCLR {backbone}, 224 px, bf16, one GPU"
    return f"{what}, share of the model alone", f"{what}, against lightly with {LOADERS} loader processes"


VIEWS = "two views on the GPU, batch 256, 224 px, share of the step"
BARLOW_LINE = "Barlow Twins ViT-S/16, 224 px, batch 256, against the published samples/s on one H200"
SHARING = "eight small trials, four at a time on one GPU, against one at a time"


def views(ours: OnDevice, repeats: int) -> Figure:
    """The views' share."""
    taken = alternate({"views": ours.only_views, "steps": ours.steps}, repeats)
    each = 1000 * taken["views"].seconds / STEPS
    return Figure(VIEWS, f"{each:.2f} ms a batch", ratio(taken["views"], taken["steps"]), "share", 0.1, lower=True)


def barlow(ours: OnDevice, batch: int, repeats: int) -> Figure:
    """Samples per second."""
    seconds = alternate({"ours": ours.steps}, repeats)["ours"].seconds
    speed = batch * STEPS / seconds
    return Figure(BARLOW_LINE, f"{speed:,.0f} samples/s, published {PUBLISHED}", speed / PUBLISHED, "x", 3)


def sharing() -> Figure:
    """Wall seconds of a sweep of small trials with a quarter of the GPU each, and with all of it."""
    seconds = {}
    with tempfile.TemporaryDirectory() as name:
        for share in (1.0, 0.25):
            sweep = sweeps.write(Path(name), "leaves", trials=8, epochs=10)
            start = time.perf_counter()
            sweeps.run(sweep, Path(name) / f"{share}", "--set", f"resources.gpus_per_worker={share}")
            seconds[share] = time.perf_counter() - start
    shown = f"{seconds[0.25]:.0f} s against {seconds[1.0]:.0f} s, start of Ray included"
    return Figure(SHARING, shown, seconds[1.0] / seconds[0.25], "x", 1)


def unmeasured() -> list[Figure]:
    """The lines as they read without a GPU."""
    figures = []
    for backbone, goal in SIMCLR.items():
        share, against = names(backbone)
        figures += [Figure(share, WITHOUT, None, "share", 0.95), Figure(against, WITHOUT, None, "x", goal)]
    return [
        *figures,
        Figure(BARLOW_LINE, WITHOUT, None, "x", 3),
        Figure(VIEWS, WITHOUT, None, "share", 0.1, lower=True),
        Figure(SHARING, WITHOUT, None, "x", 1),
    ]


if __name__ == "__main__":
    import sys

    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--device", default="cuda" if torch.cuda.is_available() else "none")
    own.add_argument("--size", type=int, default=224)
    own.add_argument("--batch", type=int, default=256)
    own.add_argument("--loaders", type=int, default=LOADERS)
    chosen, sys.argv[1:] = own.parse_known_args()
    main(
        partial(measure, device=chosen.device, size=chosen.size, batch=chosen.batch, loaders=chosen.loaders),
        "one GPU",
        repeats=3,
    )
