"""Spatial operations on views, float32 `[B,3,S,S]` in 0..1, each sample with its own random numbers.

Holes, swapped patches and shuffled tiles, and the two kernels under the pretext tasks jigsaw and PMG. As in
`bench.colour`, every operation takes the same count of numbers from the draw whatever its settings, leaves `x` as
it is and never waits for the device; a probability of 0 returns `x` itself.

A grid cuts a view into grid x grid square tiles of floor(S / grid) px. Where grid does not divide S the tiles are
in the centre, and the border that is left (less than grid px in all, an odd pixel at the bottom and right) stays as
it is. Tiles are numbered row by row.

Measured at 64 px on one CPU core, views/s: holes 55,000, tiles 25,000 (16 x 16) to 130,000 (2 x 2), at least 12,000
where the grid does not divide the side; `cut` of 3 x 3 tiles of 16 px 80,000.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.draw import Draw
from bench.errors import BadInput

GRAY = 0.5  # between tiles: photographs often have a white ground, or a dark one

WORD = 2**32 - 1


def numbers(draw: Draw, count: int) -> Tensor:
    """Return `[B,count]` float32 numbers uniform in [0, 1) for two of the draw's, whatever `count` is."""
    return unfolded(draw.unit(2), count)


def unfolded(key: Tensor, count: int) -> Tensor:
    """Return `[B,count]` float32 numbers uniform in [0, 1) that follow from `key`, `[B,2]` such numbers.

    Each sample's two numbers are the key of a counter-based generator: the counter goes through an invertible
    32-bit mixer (Wellons, "hash prospector") with each half of the key.
    """
    first, second = (key * 2**24).long().unsqueeze(2).unbind(1)
    counter = torch.arange(count, device=first.device) * 0x9E3779B9
    word = _mix(_mix(first + counter & WORD) ^ second << 8)
    return (word >> 8).float() / 2**24


def coarse_dropout(
    x: Tensor, draw: Draw, holes: int, size: tuple[float, float], fill: float = 0.0, probability: float = 1.0
) -> Tensor:
    """Fill square holes with the constant `fill` (DeVries and Taylor 2017; with many holes, "coarse dropout").

    The count of a sample's holes is uniform in 1..`holes`, the side of each uniform in `size` (shares of S, in 0..1,
    rounded to whole px and at least one), its place uniform inside the view. Holes may overlap.
    """
    count, key, chosen = draw.integers(holes), draw.unit(2), draw.chance(probability)
    if probability <= 0:
        return x
    length = x.shape[-1]
    share, *place = unfolded(key, 3 * holes).unsqueeze(1).chunk(3, dim=2)
    side = ((size[0] + (size[1] - size[0]) * share) * length).round_().clamp_(1, length)
    used = (torch.arange(holes, device=x.device) <= count.view(-1, 1)) & chosen.view(-1, 1)
    pixel = torch.arange(length, device=x.device).view(-1, 1)
    starts = [(unit * (length - side + 1)).floor_().minimum(length - side) for unit in place]
    rows, columns = [((pixel >= start) & (pixel < start + side)).float() for start in starts]
    hidden = (rows * used.unsqueeze(1)) @ columns.mT > 0  # counts the holes over each pixel
    return torch.where(hidden.unsqueeze(1), fill, x)


def swap_patches(x: Tensor, draw: Draw, pairs: int, size: float, probability: float = 1.0) -> Tensor:
    """Exchange the contents of `pairs` pairs of random tiles; no tile is in two pairs.

    `size`: the tile's share of S, at most 1/2; the tiles are those of the floor(1 / size) grid, so that a size which
    is no whole part of the view is rounded up to the next that is. Raises BadInput for more pairs than tiles allow.
    """
    grid = int(1 / size + 1e-9)
    key, chosen = draw.unit(2), draw.chance(probability)
    if grid < 2:
        raise BadInput(f"size: a patch of {size} of the view leaves none to swap with; at most 0.5")
    if 2 * pairs > grid * grid:
        raise BadInput(f"pairs: {pairs} pairs of patches of size {size} overlap; at most {grid * grid // 2}")
    if probability <= 0:
        return x
    order = unfolded(key, grid * grid).argsort(dim=1, stable=True)
    here, there = order[:, :pairs], order[:, pairs : 2 * pairs]
    swapped = _rest(order).scatter(1, here, there).scatter(1, there, here)
    return _sometimes(x, swapped, grid, chosen)


def shuffle_tiles(x: Tensor, draw: Draw, grid: int, probability: float = 1.0) -> Tensor:
    """Put all tiles in a random order, each of the (grid * grid)! as likely as another: a random jigsaw."""
    key, chosen = draw.unit(2), draw.chance(probability)
    if probability <= 0:
        return x
    return _sometimes(x, unfolded(key, grid * grid).argsort(dim=1, stable=True), grid, chosen)


def shuffle_locally(x: Tensor, draw: Draw, grid: int, reach: int, probability: float = 1.0) -> Tensor:
    """Move tiles within their neighbourhood: the region confusion mechanism (Chen et al. 2019, DCL, section 3.1).

    Within each row the tiles are sorted by i + U(-reach, reach), i their column, and then likewise within each
    column: a tile moves less than 2 * `reach` places along either axis. The paper writes both moves as functions of
    the first place; one after the other, as here, they are sure to keep every tile.
    """
    key, chosen = draw.unit(2), draw.chance(probability)
    if probability <= 0:
        return x
    return _sometimes(x, local_order(unfolded(key, 2 * grid * grid), grid, reach), grid, chosen)


def local_order(unit: Tensor, grid: int, reach: int) -> Tensor:
    """Orders `[B,grid*grid]` for `arrange` of `shuffle_locally`, from numbers `[B,2*grid*grid]` in [0, 1)."""
    across, down = ((2 * unit - 1) * reach).view(-1, 2, grid, grid).unbind(1)
    place = torch.arange(grid, device=unit.device)
    column = (place + across).argsort(dim=2, stable=True)
    row = (place.view(-1, 1) + down).argsort(dim=1, stable=True)
    return (row * grid + column.gather(1, row)).flatten(1)


def arrange(x: Tensor, order: Tensor, grid: int) -> Tensor:
    """Rearrange the tiles of `[B,C,S,S]` (any type): the tile at place j of the result is tile `order[b,j]`.

    `order`: int64 `[B,grid*grid]` of tile numbers, as a rule permutations. Raises BadInput if the tiles have no pixels.
    """
    batch, channels, size, _ = x.shape
    tile = tile_side(size, grid)
    first, used = (size - grid * tile) // 2, grid * tile
    inner = x[:, :, first : first + used, first : first + used]
    # Runs of one tile's pixels in one image row, numbered (sample, channel, tile row, pixel row, tile column).
    from_row, from_column = (part.view(batch, 1, grid, 1, grid) for part in (order // grid, order % grid))
    plane = torch.arange(batch * channels, device=x.device).view(batch, channels, 1, 1, 1)
    pixel_row = torch.arange(tile, device=x.device).view(1, 1, 1, tile, 1)
    runs = ((plane * grid + from_row) * tile + pixel_row) * grid + from_column
    moved = inner.reshape(-1, tile).index_select(0, runs.view(-1)).view(batch, channels, used, used)
    if used == size:
        return moved
    out = x.clone()
    out[:, :, first : first + used, first : first + used] = moved
    return out


def cut(x: Tensor, grid: int, tile: int, offsets: Tensor) -> Tensor:
    """Cut a window of `tile` px out of each cell of the grid: `[B,C,S,S]` (any type) to `[B,grid*grid,C,tile,tile]`.

    `offsets`: int64 `[B,grid*grid,2]`, top and left of the window in its cell, held to 0..floor(S / grid) - tile.
    A tile that is smaller than its cell leaves a gap, and random offsets jitter (Noroozi and Favaro 2016, section
    4.2). Raises BadInput for a tile that is larger than the cells.
    """
    batch, channels, size, _ = x.shape
    cell = tile_side(size, grid)
    if not 1 <= tile <= cell:
        raise BadInput(f"tile: {tile} px do not fit cells of {cell} px ({size} px, grid {grid}); 1 to {cell} do")
    start = (size - grid * cell) // 2 + cell * torch.arange(grid, device=x.device)
    corner = torch.cartesian_prod(start, start) + offsets.clamp(0, cell - tile)
    pixel = torch.arange(tile, device=x.device)
    rows, columns = (corner.unsqueeze(3) + pixel).unbind(2)
    plane = torch.arange(batch * channels, device=x.device).view(batch, 1, channels, 1, 1) * size
    index = (plane + rows.view(batch, -1, 1, tile, 1)) * size + columns.view(batch, -1, 1, 1, tile)
    return x.reshape(-1).index_select(0, index.view(-1)).view(index.shape)


def lay_out(tiles: Tensor, order: Tensor | None = None, gap: int = 2) -> Tensor:
    """Tiles `[B,N*N,3,t,t]` in 0..1 as one picture `[B,3,S,S]` of each image, row by row, with gray gaps.

    `order`: `[B,N*N]`, which tile lies at each place; by default each where it is.
    """
    if order is not None:
        tiles = tiles[torch.arange(len(tiles), device=tiles.device).unsqueeze(1), order]
    grid = round(tiles.shape[1] ** 0.5)
    spaced = F.pad(tiles, (0, gap, 0, gap), value=GRAY).unflatten(1, (grid, grid))
    whole: Tensor = spaced.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    side = whole.shape[2] - gap
    return whole[:, :, :side, :side]


def tile_side(size: int, grid: int) -> int:
    """Side in px of the tiles of a view of `size` px; raises BadInput where it would be none."""
    if not 1 <= grid <= size:
        raise BadInput(f"grid: a view of {size} px has no grid of {grid} x {grid} tiles; 1 to {size} do")
    return size // grid


def _mix(word: Tensor) -> Tensor:
    """Mix 32-bit words held in int64; the factors are below 2**31, so that no product overflows."""
    word = (word ^ word >> 16) * 0x21F0AAAD & WORD
    word = (word ^ word >> 15) * 0x735A2D97 & WORD
    return word ^ word >> 15


def _rest(order: Tensor) -> Tensor:
    """The order that leaves all tiles where they are, in the shape of `order`."""
    return torch.arange(order.shape[1], device=order.device).expand_as(order)


def _sometimes(x: Tensor, order: Tensor, grid: int, chosen: Tensor) -> Tensor:
    """`arrange` the samples `chosen` (`[B]` booleans); others, by the order at rest, stay as they are."""
    return arrange(x, torch.where(chosen.view(-1, 1), order, _rest(order)), grid)
