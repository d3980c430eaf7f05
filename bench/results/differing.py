"""In what two trials' configurations differ, field by field, as `--set` names the fields."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.results.sides import Side

_PLACES = {"config": "", "training": "pretrain.", "finetune": "finetune.", "protocol_versions": "protocol version "}


@dataclass(frozen=True)
class Differing:
    """The fields that both have with unlike values, and those that only one has (the methods' own, mostly)."""

    both: Mapping[str, tuple[Any, Any]]
    only: tuple[Mapping[str, Any], Mapping[str, Any]]


def differing(first: Side, second: Side) -> Differing:
    """Compare what was resolved when the trials were made; the seed is left out."""
    a, b = dict(_fields(first)), dict(_fields(second))
    both = {name: (a[name], b[name]) for name in a if name in b and a[name] != b[name]}
    only_a = {name: value for name, value in a.items() if name not in b}
    only_b = {name: value for name, value in b.items() if name not in a}
    return Differing(both, (only_a, only_b))


def _fields(side: Side) -> Iterator[tuple[str, Any]]:
    names = _names(side)
    for key, value in sorted(side.config.items(), key=lambda item: item[0] != "method"):  # what matters most first
        if key == "data":
            yield "pretrain.dataset", _dataset(value, names)
        elif key == "evaluate":
            for each in value or ():
                told = f"{each.get('metric')} by {', '.join(each.get('protocols') or ())}"
                yield f"evaluated on {_dataset(each.get('fingerprint'), names)}", told
        else:
            yield from _flat(_PLACES.get(key, key), value)


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a nested table by their dotted paths; of a part that is switched off only that it is."""
    if not isinstance(value, Mapping):
        yield path.removesuffix("."), value
        return
    start = path if not path or path[-1] in ". " else f"{path}."
    off = value.get("enabled") is False
    for key, inner in value.items() if not off else [("enabled", False)]:
        yield from _flat(f"{start}{key}", inner)


def _names(side: Side) -> dict[str, str]:
    """Datasets' names by fingerprint."""
    pairs = side.rows[["dataset_fingerprint", "dataset"]].dropna().drop_duplicates()
    names = {str(key): str(name) for key, name in pairs.itertuples(index=False, name=None)}
    trained = side.rows["pretrain_dataset"].dropna()
    return {str(side.config.get("data")): str(trained.iloc[0])} | names if len(trained) else names


def _dataset(fingerprint: Any, names: Mapping[str, str]) -> str:
    """`leaves (1a2b3c4d)`: the name and how the fingerprint of its content begins."""
    key = str(fingerprint or "")
    return f"{names[key]} ({key[:8]})" if key and key in names else key[:8]
