"""The trackers that `--log-to` names, checked before anything starts."""

from importlib.util import find_spec

from bench.errors import BadInput, UnknownName

TRACKERS = ("wandb", "mlflow")


def tracked(text: str | None) -> tuple[str, ...]:
    """The trackers of `--log-to wandb,mlflow`. Raises UnknownName, or BadInput for one that is not installed."""
    names = tuple(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))
    for name in names:
        if name not in TRACKERS:
            raise UnknownName("tracker (--log-to)", name, TRACKERS)
        if find_spec(name) is None:
            raise BadInput(f"--log-to {name}: {name} is not installed: pip install 'bench[{name}]'")
    return names
