"""Which layouts of released datasets there are: a module's name in `layouts/` is the layout's name."""

import importlib
import pkgutil
from functools import cache

from bench.data import layouts
from bench.data.layout import Layout
from bench.errors import UnknownName


@cache
def layout_names() -> tuple[str, ...]:
    """Every layout's name, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(layouts.__path__)))


def find_layout(name: str) -> Layout:
    """Return a layout by its name; raises UnknownName with the nearest one there is."""
    if name not in layout_names():
        raise UnknownName("layout", name, layout_names())
    found: Layout = importlib.import_module(f"bench.data.layouts.{name}").LAYOUT
    return found
