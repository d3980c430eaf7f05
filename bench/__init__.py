"""bench: which self-supervised pretext task works on fine-grained images.

In a notebook, `bench.load_results` reads the results of runs and `bench.leaderboard` ranks them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.results.notebook import leaderboard, load_results

__version__ = "0.1.0"
__all__ = ["__version__", "leaderboard", "load_results"]


def __getattr__(name: str) -> Any:
    """Import what notebooks use when it is first asked for, so that `import bench` stays quick."""
    if name in ("leaderboard", "load_results"):
        from bench.results import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
