"""What happens in a sweep, told to whoever shows it. Ray pickles its callbacks, so the listener is found by name."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from ray import tune

Kind = Literal["start", "epoch", "finished", "pruned", "failed", "reused"]
Listener = Callable[[Kind, str, Mapping[str, Any]], None]

_listener: Listener | None = None


def listen(listener: Listener | None) -> None:
    """Send the events of this process to `listener(kind, key, facts)`; None: to nobody."""
    global _listener
    _listener = listener


def emit(kind: Kind, key: str, facts: Mapping[str, Any]) -> None:
    """Tell the listener of one event of the trial `key`."""
    if _listener is not None:
        _listener(kind, key, facts)


class Forward(tune.Callback):
    """Passes each report of a running trial on; stateless, because Ray pickles it."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Called by Tune in the driver for every report."""
        if "loss" in result:
            emit("epoch", trial.trial_id, result)
