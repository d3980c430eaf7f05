"""The cache folder of this machine: packs, digests, fetched releases, mirrors of results on a store."""

import os
from pathlib import Path

from platformdirs import user_cache_path

ENVIRONMENT = "BENCH_CACHE"


def cache_folder() -> Path:
    """BENCH_CACHE, else the user's cache folder."""
    named = os.environ.get(ENVIRONMENT)
    return Path(named).expanduser().absolute() if named else user_cache_path("bench")
