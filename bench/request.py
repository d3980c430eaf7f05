"""What `bench run` is asked for: a sweep with the command line's options laid over it."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.sweep import Sweep


def requested_sweep(
    sweep: str,
    *,
    profile: str | None = None,
    method: str | None = None,
    candidates: str | None = None,
    pretrain_on: str | None = None,
    evaluate_on: str | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    workers: int | None = None,
    settings: Sequence[str] | None = None,
) -> Sweep:
    """The sweep that the options of `bench run`, by their parameters' names, ask for.

    Reads no data. Raises BadInput with the file and the field of everything that is wrong.
    """
    from bench.sweepfile import load_sweep

    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a method of the user's own is found where they are
    over = {
        "method": method,
        "pretrain": {"dataset": pretrain_on},
        "evaluate": {"datasets": evaluate_on.split(",") if evaluate_on else None},
        "resources": {"workers": workers},
    }
    given = {"pretrain.epochs": epochs, "search.trials": trials}
    settings = [*(settings or ()), *(f"{path}={value}" for path, value in given.items() if value is not None)]
    only = [name.strip() for name in candidates.split(",")] if candidates else ()
    return load_sweep(sweep, profile=profile, only=only, over=_given(over), settings=settings)


def _given(value: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not given on the command line."""
    kept = {key: _given(inner) if isinstance(inner, dict) else inner for key, inner in value.items()}
    return {key: inner for key, inner in kept.items() if inner is not None and inner != {}}
