"""Jigsaw: tell in which of P known orders the tiles of an image were laid out.

Noroozi and Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles" (arXiv 1603.09246):
the network and its shared trunk section 3.1, the permutation set section 4.2, and what keeps the network from reading
edges and colour instead of content: gaps and random places of the tiles, normalisation of each tile, colour jitter and
gray images. The 2021 study (arXiv 2107.13973) cuts 64 px out of each 75 px cell and takes 100 permutations by pairs.

The trunk sees one tile at a time, so to permute tiles is to permute their features: an image's tiles pass through
the trunk once and the head solves `orders` puzzles of them, which is nearly free. On the built-in leaves (1500 images,
64 px, small encoder, batch 128, AdamW 2e-3, P = 100, ln P = 4.61) 10 epochs end at a validation loss of 1.28 with one
order and 0.79 with 8.

The side of a tile decides what is learnt. A view of 64 px cut as it is gives tiles of 18 px, of which the small encoder
keeps 2 x 2 places, most of them padding: what solves them well probes below the untrained encoder on whole views. So a
tile has half the side of a view by default, taken from a view that is drawn larger (114 px for 64), at 2.3 times the
cost; the paper's own are 64 of 225 px. Leaves as above, 8 epochs, linear probe on 200 validation images, seeds 1 and 2:
untrained 0.33 and 0.35, tiles of 18 px 0.30 and 0.26, of 32 px 0.37 and 0.36.
"""

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from bench.augmentation import Augmentation, WideCrop, augment
from bench.draw import Draw
from bench.encoders import Encoder, VisionTransformer
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.method import Method, Shown, Views
from bench.patches import cut, lay_out, numbers
from bench.permutations import Choice, permutation_set

SMALLEST = 8  # px: a tile with less shows nothing
FLAT = 0.01  # least deviation that a tile is divided by: a flat one stays flat


class JigsawConfig(Augmentation):
    """Jigsaw's hyperparameters; views are drawn before they are cut."""

    crop: WideCrop = WideCrop()
    grayscale: float = Field(0.3, ge=0, le=1, description="probability of a gray view (section 4.2)")
    grid: int = Field(3, ge=2, le=8, description="tiles per side")
    permutations: int = Field(100, ge=2, le=10_000, description="size P of the set of orders; chance is ln P")
    choice: Choice = Field("greedy", description="how the set is chosen: greedy maximal Hamming, or the study's pairs")
    distance: float = Field(0.9, ge=0, lt=1, description="share of places in which the two of a pair differ at least")
    orders: int = Field(8, ge=1, le=256, description="puzzles of each image in a step; they share the trunk's pass")
    gap: float = Field(0.15, ge=0, le=0.8, description="share of a cell's side that its tile leaves out")
    shift: bool = Field(True, description="a tile lies at a random place of its cell, else in the centre")
    normalise: bool = Field(True, description="each tile has zero mean and unit deviation in each channel")
    tile: int = Field(0, ge=0, le=512, description="side of a tile, pixels; 0: half of a view's, in whole patches")
    tile_features: int = Field(64, ge=4, le=4096, description="units of the head's layer for each tile")
    hidden: int = Field(512, ge=8, le=16_384, description="units of the head's layer on all tiles")

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_say_it(cls, values: Any) -> Any:
        # The distance has no effect on a greedy set: all ways to write one are one trial.
        if isinstance(values, Mapping) and values.get("choice", "greedy") == "greedy":
            return {key: value for key, value in values.items() if key != "distance"}
        return values

    @model_validator(mode="after")
    def _enough_orders(self) -> Self:
        most = math.factorial(self.grid**2)
        if self.permutations > most:
            raise ValueError(f"permutations: {self.grid} x {self.grid} tiles have {most} orders, no more")
        return self


class Jigsaw(Method):
    """Classification of the order of an image's tiles, with its accuracy in training and on validation images."""

    Config = JigsawConfig
    version = 2
    summary = "tell in which of P known orders the tiles of an image lie"
    config: JigsawConfig

    def __init__(self, config: JigsawConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        cells, width = config.grid**2, config.tile_features
        orders = permutation_set(config.grid, config.permutations, config.choice, config.distance)
        self.register_buffer("orders", orders, persistent=False)
        self.orders: Tensor  # [P,cells]: the tile at place j of order p is orders[p,j]
        self.each = nn.Sequential(nn.Linear(encoder.dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        self.all = nn.Sequential(
            nn.Linear(cells * width, config.hidden, bias=False),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.permutations),
        )

    def views(self, images: ImageBatch, draw: Draw, size: int) -> Views:
        """The tiles of each image where they belong `[B*cells,3,t,t]`, and the numbers of its orders `[B,orders]`."""
        config, (tile, cell) = self.config, self.sides(size)
        cells = config.grid**2
        view = augment(images, draw, cell * config.grid, config)
        place = (
            numbers(draw, 2 * cells).view(-1, cells, 2) if config.shift else view.new_full((len(view), cells, 2), 0.5)
        )
        tiles = cut(view, config.grid, tile, (place * (cell - tile + config.shift)).long()).flatten(0, 1)
        which = (numbers(draw, config.orders) * config.permutations).long()
        return self.normalised(tiles) if config.normalise else tiles, which

    def sides(self, size: int) -> tuple[int, int]:
        """Sides in px of a tile and of its cell, where other methods' views have `size`.

        The view that is cut is made for them. Raises BadInput where tiles are too small.
        """
        patch = self.encoder.patch if isinstance(self.encoder, VisionTransformer) else 1
        tile, least = self.config.tile or size // 2 // patch * patch, max(SMALLEST, patch)
        if tile < least:
            wrong = "tile:" if self.config.tile else f"pretrain.image_size {size}:"
            raise BadInput(f"{wrong} tiles of {tile} px are too small for the encoder; try tile = {least}")
        return tile, round(tile / (1 - self.config.gap))

    def normalised(self, tiles: Tensor) -> Tensor:
        """Tiles `[N,3,t,t]` that the encoder's own normalisation brings to zero mean and unit deviation."""
        deviation, mean = torch.std_mean(tiles, dim=(2, 3), correction=0, keepdim=True)
        return (tiles - mean) / deviation.clamp(min=FLAT) * self.encoder.std + self.encoder.mean

    def shown(self, views: Views, count: int) -> list[Shown]:
        """The tiles where they belong, and laid out in the first of an image's orders, whose number is to be told."""
        tiles, which = views
        tiles, first = tiles.float().clamp(0, 1).unflatten(0, (count, -1)), which[:, 0]
        orders = self.orders[first]
        captions = []
        for number, order in zip(first.tolist(), orders.tolist(), strict=True):
            told = "".join(str(tile + 1) for tile in order) if len(order) < 10 else ""
            captions.append(f"order {number + 1} {told}".rstrip())
        places = Shown("tiles where they belong", lay_out(tiles))
        return [places, Shown("as laid out", lay_out(tiles, orders), tuple(captions))]

    def losses(self, views: Views, progress: float) -> Mapping[str, Tensor]:
        """Cross entropy over the P orders, and the accuracy."""
        tiles, which = views
        numbers_, logits = which.flatten(), self.logits(tiles, which)
        return {
            "loss": F.cross_entropy(logits, numbers_),
            "accuracy": (logits.argmax(1) == numbers_).float().mean(),
        }

    def logits(self, tiles: Tensor, which: Tensor) -> Tensor:
        """Scores `[B*orders,P]` of the tiles `[B*cells,3,t,t]` laid out in the orders `which` `[B,orders]`."""
        features = self.each(self.encoder(tiles)).unflatten(0, (len(which), -1))
        image = torch.arange(len(which), device=which.device).view(-1, 1, 1)
        laid: Tensor = features[image, self.orders[which]]  # [B,orders,cells,width]
        scores: Tensor = self.all(laid.flatten(2).flatten(0, 1))
        return scores.float()

    def validation(self, images: ImageBatch, size: int) -> Mapping[str, Tensor]:
        """Loss and accuracy on fixed puzzles of the validation images."""
        return self.losses(self.views(images, Draw(0, len(images), device=images.device), size), 0.0)
