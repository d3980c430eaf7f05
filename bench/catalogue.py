"""One method, dataset, sweep, encoder or protocol in full. One line about each is in `bench.summaries`."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from bench.datasheet import sheet
from bench.errors import UnknownName
from bench.evaluation.finetune import Finetune
from bench.records import field_paths
from bench.registry import find_method
from bench.summaries import KINDS
from bench.sweep import Sweep
from bench.sweepfile import load_sweep
from bench.trial import Training


def details(name: str) -> RenderableType:
    """Everything about one method, dataset, sweep or encoder; raises UnknownName."""
    kinds = {kind: summaries() for kind, summaries in KINDS.items()}
    if name in kinds["methods"]:
        return _method(name)
    if name in kinds["sweeps"]:
        return _sweep(load_sweep(name))
    if name in kinds["datasets"]:
        return sheet(name)
    for kind in ("encoders", "protocols"):
        if name in kinds[kind]:
            return _pairs(name, {"kind": kind.removesuffix("s"), "summary": kinds[kind][name]})
    raise UnknownName(
        "method, dataset, sweep, encoder or protocol", name, [key for kind in kinds.values() for key in kind]
    )


def _method(name: str) -> RenderableType:
    method = find_method(name)
    head = f"[bold]{escape(name)}[/]: {escape(method.summary)}\n\n{escape((method.__doc__ or '').strip())}\n"
    own = _fields("hyperparameters (set with --set method.NAME=VALUE; each can be swept)", field_paths(method.Config))
    training = _fields("training (--set pretrain.NAME=VALUE)", field_paths(Training))
    return Group(head, own, training, _fields("finetuning (--set finetune.NAME=VALUE)", field_paths(Finetune)))


def _fields(title: str, fields: Mapping[str, Any]) -> Table:
    rows = Table(title=title, title_justify="left", box=None, header_style="dim")
    for column in ("name", "default", "values", "meaning"):
        rows.add_column(column)
    for name, field in fields.items():
        default = "" if field.default is PydanticUndefined else repr(field.default)
        rows.add_row(
            f"[cyan]{escape(name)}[/]", escape(default), escape(_bounds(field)), escape(field.description or "")
        )
    return rows


def _bounds(field: Any) -> str:
    """The type and bounds of a field as people write them."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(rule, key)}" for rule in field.metadata for key, sign in signs.items() if hasattr(rule, key)
    ]
    kind = field.annotation
    shown = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "").replace("Literal", "one of ")
    return " ".join([shown, *limits])


def _sweep(sweep: Sweep) -> RenderableType:
    rows: dict[str, Any] = {"question": sweep.title, "profile": sweep.profile}
    for name, candidate in sweep.candidates.items():
        place = f"{name}: " if len(sweep.candidates) > 1 else ""
        rows |= {f"{place}method": sweep.method(name), f"{place}draws": sweep.draws(name)}
        rows |= {f"{place}set {path}": value for path, value in candidate.set.items()}
        rows |= {f"{place}space {path}": str(domain) for path, domain in candidate.space.items()}
    parts = ["pretrain", "search", "evaluate", "confirm", "resources"]
    parts += ["finetune"] if "finetune" in sweep.evaluate.protocols else []
    for part in parts:
        record: BaseModel = getattr(sweep, part)
        rows |= {f"{part}.{name}": value for name, value in record.model_dump().items()}
    return _pairs(sweep.name, rows)


def _pairs(title: str, values: Mapping[str, Any]) -> Table:
    rows = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
    for name, value in values.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        rows.add_row(f"[cyan]{escape(name)}[/]", escape(shown))
    return rows
