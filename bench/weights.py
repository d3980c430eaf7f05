"""ImageNet weights through torchvision: which there are, where their files lie, how they are read.

Files lie in the checkpoint folder of `torch.hub` under torchvision's names: weights that any other program of this user
has fetched are found, and a machine without a network is served by putting a file there.
"""

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from bench.errors import TrialFailed, UnknownName


def imagenet_weights(network: str, version: str = "IMAGENET1K_V1") -> Any:
    """Return torchvision's entry (a `WeightsEnum`) of one version of a network's weights.

    Raises UnknownName for a version that the network has not.
    """
    from torchvision.models import get_model_weights

    versions = get_model_weights(network)
    if version not in versions.__members__:
        raise UnknownName(f"version of {network}'s weights", version, versions.__members__)
    return versions[version]


def weights_file(weights: Any) -> Path:
    """Where torch.hub keeps the file of `weights`, whether it is there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name


def load_weights(weights: Any, *, download: bool) -> dict[str, Tensor]:
    """Return the tensors of `weights` from the file at hand, else, if `download`, from torchvision's host.

    A download is compared with the hash in its name. The file may hold tensors only: reading it runs no code.
    Raises TrialFailed, which says where to put the file, where there is none or it cannot be read.
    """
    file = weights_file(weights)
    if not download and not file.is_file():
        raise TrialFailed(_how_to_get(weights, "they are not at hand"))
    try:
        tensors: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except Exception as error:  # no network, no room, a wrong hash, a torn file: torch has no common class for them
        what = "its file cannot be read; delete it" if file.is_file() else "they cannot be downloaded"
        raise TrialFailed(_how_to_get(weights, f"{what} ({type(error).__name__}: {error})")) from error
    return tensors


def _how_to_get(weights: Any, problem: str) -> str:
    file = weights_file(weights)
    return (
        f"ImageNet weights {weights}: {problem}. Put {file.name} into {file.parent} "
        f"(from {weights.url}; TORCH_HOME names another folder)"
    )
