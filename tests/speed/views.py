"""Two augmented views of a batch on the CPU: ours, torchvision's transforms image by image, kornia's batched ones.

All start from the same decoded pixels at the size a pack keeps for 64 px views and give two views of 64 px with
SimCLR's default changes (random resized crop, flip, colour jitter, grayscale). torchvision gets its fastest form
for this: v2 transforms on uint8 tensors, in one process with the same number of threads and, as users run it, in
two loader workers.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from bench.cache import cache_folder
from bench.data.dataset import resolve
from bench.data.pack import open_pack, pack_size
from bench.draw import Draw
from bench.encoders import build_encoder
from bench.registry import build
from tests.speed.figures import Figure, alternate, main, ratio

SIZE, BATCH = 64, 256
OFF = {"gamma": {"enabled": False}}


def one_view() -> v2.Compose:
    """SimCLR's CIFAR-strength view in torchvision's transforms, as our defaults have it."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


class TwoViews(Dataset[tuple[Tensor, Tensor]]):
    """Two views of each decoded image."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels, self.view = pixels, one_view()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.view(self.pixels[row]), self.view(self.pixels[row])


def measure(arguments: argparse.Namespace) -> Sequence[Figure]:
    """Images per second of each."""
    import kornia.augmentation as K

    pack = open_pack(resolve(arguments.data).source, pack_size(SIZE), cache_folder())
    rows = pack.pretraining_rows()[:BATCH]
    images = pack.batch(rows)
    pixels = images.pixels.clone()
    method = build("simclr", OFF, build_encoder("small", 0))
    batched = K.AugmentationSequential(
        K.RandomResizedCrop((SIZE, SIZE), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
    )
    loader = DataLoader(TwoViews(pixels), batch_size=BATCH, num_workers=2, persistent_workers=True)
    alone = TwoViews(pixels)
    step = iter(range(10**6))
    with torch.no_grad():
        taken = alternate(
            {
                "ours": lambda: method.views(images, Draw(next(step), len(rows)), SIZE),
                "kornia": lambda: [batched(pixels.float() / 255) for _ in range(2)],
                "torchvision": lambda: [alone[row] for row in range(len(rows))],
                "torchvision, 2 loader processes": lambda: list(loader),
            },
            arguments.repeats,
        )
    speeds = {name: len(rows) / one.seconds for name, one in taken.items()}
    shown = {name: f"{speed:,.0f} images/s" for name, speed in speeds.items()}
    best = min(("torchvision", "torchvision, 2 loader processes"), key=lambda name: taken[name].seconds)
    where = f"{SIZE} px, batch {BATCH}, {torch.get_num_threads()} threads"
    return [
        Figure(
            "two augmented views, CPU, against torchvision per image",
            f"ours {shown['ours']}, {best} {shown[best]}; {where}",
            ratio(taken[best], taken["ours"]),
            "x",
            6,
        ),
        Figure(
            "two augmented views, CPU, against kornia batched",
            f"ours {shown['ours']}, kornia {shown['kornia']}; {where}",
            ratio(taken["kornia"], taken["ours"]),
            "x",
            2,
        ),
    ]


if __name__ == "__main__":
    main(measure, "two augmented views of a batch, CPU")
