"""The images of a pack while it is built: resampled to one canvas, and written each into its row by any thread."""

import os
import shutil
from collections.abc import Sequence
from errno import ENOSPC
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.dlpack import from_dlpack

Canvas = tuple[int, int]  # width, height in px


def stretch(image: Image.Image, canvas: Canvas) -> npt.NDArray[np.uint8]:
    """Resample an RGB picture to the canvas, bicubic and antialiased: uint8 `[3,H,W]`.

    torch's kernel has Pillow's filter in 16-bit whole numbers: it is 2 of 255 away at most, three times as fast, and
    gives the same bytes with and without vector instructions.
    """
    pixels = _pixels(image)
    if image.size != canvas:
        pixels = interpolate(pixels, size=canvas[::-1], mode="bicubic", antialias=True)
    # Copied by numpy: torch would share the copy among threads of its own, one set for each thread that packs.
    return np.ascontiguousarray(pixels[0, :3].numpy())


def _pixels(image: Image.Image) -> torch.Tensor:
    """A picture's pixels, uint8 `[1,3 or 4,H,W]` with the channels last in memory; not copied where Pillow allows it.

    Pillow keeps four bytes per RGB pixel, and shares them where the picture lies in one block of its memory.
    """
    import pyarrow

    try:
        flat = from_dlpack(pyarrow.array(image).values)
    except ValueError:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return flat.view(1, image.height, image.width, 4).permute(0, 3, 1, 2)


class Rows:
    """An .npy file of uint8 `[N,3,H,W]` whose rows are put in any order.

    Plain writes: on a full disk they fail with an error, where a memory map would end the process.
    """

    def __init__(self, path: Path, count: int, canvas: Canvas) -> None:
        """Create the file for `count` images; OSError where the disk has no room for them."""
        self.canvas = canvas
        self._row = 3 * canvas[0] * canvas[1]  # bytes
        free = shutil.disk_usage(path.parent).free
        if count * self._row > free:
            raise OSError(ENOSPC, f"it needs {count * self._row / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")
        self._stream = path.open("w+b")
        self._begin = self._write_header(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def put(self, row: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Write one image, uint8 `[3,H,W]`."""
        rest, offset = pixels.data.cast("B"), self._offset(row)
        while rest:
            written = os.pwrite(self._stream.fileno(), rest, offset)
            rest, offset = rest[written:], offset + written

    def keep(self, rows: Sequence[int]) -> None:
        """Leave only these rows, ascending, and close up."""
        descriptor = self._stream.fileno()
        for new, old in enumerate(rows):
            if new != old:
                data = np.frombuffer(os.pread(descriptor, self._row, self._offset(old)), np.uint8)
                self.put(new, data)
        os.ftruncate(descriptor, self._offset(len(rows)))
        if self._write_header(len(rows)) != self._begin:
            raise OSError("the array's header has changed its length")

    def _offset(self, row: int) -> int:
        return self._begin + row * self._row

    def _write_header(self, count: int) -> int:
        """Write the .npy header, which numpy pads so that the first dimension can be corrected; return its end."""
        shape = (count, 3, self.canvas[1], self.canvas[0])
        self._stream.seek(0)
        np.lib.format.write_array_header_1_0(
            self._stream, {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
        )
        self._stream.flush()
        return self._stream.tell()
