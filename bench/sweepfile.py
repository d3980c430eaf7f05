"""Reading a sweep: its file, a profile, what the command line sets, and whether all of it can be drawn."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.cards import find_card
from bench.errors import BadInput, UnknownName, suggestion
from bench.evaluation.finetune import Finetune
from bench.records import Record, deep_merge, field_paths, parse, read_toml, set_path
from bench.registry import find_method
from bench.space import random_draws
from bench.sweep import PLACES, Sweep, split_path
from bench.trial import Training

TRIED_DRAWS = 64  # joint draws of a space that must be valid, alone and under each baseline


def parse_setting(text: str) -> tuple[str, Any]:
    """Read `path=value` from the command line; the value is TOML, or else a plain string."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise BadInput(f"--set {text!r}: write it as FIELD=VALUE, for example method.temperature=0.2")
    try:
        return path.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path.strip(), value.strip()


def load_sweep(
    reference: str,
    *,
    profile: str | None = None,
    only: Sequence[str] = (),
    over: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> Sweep:
    """Read the sweep of a name or path with a profile, tables laid over it, and `path=value` settings.

    A setting of a swept field fixes it: the field leaves the search space. `only`: the candidates that are kept.
    Raises BadInput with the file and the field of everything that is wrong in it.
    """
    path = find_card("sweeps", reference)
    data = read_toml(path)
    profiles = _table(data.pop("profile", {}), f"{path}: profile")
    default = str(data.pop("default_profile", next(iter(profiles), "")))
    chosen = profile or default
    if chosen and chosen not in profiles:
        raise BadInput(f"{path}: no profile is named {chosen!r}{suggestion(chosen, profiles)}")
    data = deep_merge(data, _table(profiles.get(chosen, {}), f"{path}: profile.{chosen}"))
    data = _only(_candidates(deep_merge(data, over or {}), path), only)
    data |= {"name": path.stem, "profile": chosen or "default"}
    data = _apply_settings(data, settings)
    sweep = parse(Sweep, data, str(path))
    _check_fields(sweep, path)
    return sweep


def _table(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{place} must be a table (given: {value!r})")
    return value


def _candidates(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write a sweep of one method (`method`, [set], [space]) as a sweep of one candidate."""
    alone = {key: data[key] for key in ("method", "set", "space") if key in data}
    for key in ("set", "space", "pretrain", "candidates", "confirm"):
        _table(data.get(key, {}), f"{path}: {key}")
    if "candidates" in data:
        for name, candidate in data["candidates"].items():
            for key in ("set", "space"):
                _table(_table(candidate, f"{path}: candidates.{name}").get(key, {}), f"{path}: candidates.{name}.{key}")
        if alone:
            raise BadInput(f"{path}: {', '.join(alone)}: with [candidates], each has its own")
        return data
    alone.setdefault("method", "")
    if not isinstance(alone["method"], str) or not alone["method"]:
        raise BadInput(f"{path}: key 'method' is missing: name a method, or [candidates]")
    rest = {key: value for key, value in data.items() if key not in alone}
    return rest | {"candidates": {alone["method"]: alone}}


def _only(data: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Keep some of the candidates, and the baselines that belong to them."""
    for name in names:
        if name not in data["candidates"]:
            raise UnknownName("candidate", name, data["candidates"])
    if not names:
        return data
    confirm = dict(data.get("confirm", {}))
    several = len(data["candidates"]) > 1
    rows = confirm.get("baselines", ())
    if not isinstance(rows, list | tuple) or not all(isinstance(row, dict) for row in rows):
        return data  # and the sweep's own check says what is wrong
    baselines = [row for row in rows if not several or row.get("of") in names]
    kept = {name: table for name, table in data["candidates"].items() if name in names}
    return data | {"candidates": kept, "confirm": confirm | ({"baselines": baselines} if baselines or several else {})}


def _apply_settings(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Lay `path=value` settings over a sweep; what they set is neither searched nor set otherwise any more."""
    sections = set(Sweep.model_fields) - {"name", "profile", "candidates", *PLACES}
    for path, value in map(parse_setting, settings):
        head, _, rest = path.partition(".")
        if head in sections:
            data = set_path(data, path, value)
            if path == "search.trials":
                data = data | {"candidates": _without_trials(data["candidates"])}
        elif head in ("pretrain", "finetune") and rest:
            data = _fix(set_path(data, path, value), list(data["candidates"]), path)
        elif head in data["candidates"] and rest:
            data = _fix(data, [head], rest, value)
        elif len(data["candidates"]) == 1:
            data = _fix(data, list(data["candidates"]), path, value)
        else:
            names = ", ".join(data["candidates"])
            raise BadInput(f"--set {path}: say of which candidate, as in CANDIDATE.FIELD=VALUE; there are: {names}")
    return data


def _without_trials(candidates: Mapping[str, Any]) -> dict[str, Any]:
    """The candidates without numbers of draws of their own."""
    return {name: {key: table[key] for key in table if key != "trials"} for name, table in candidates.items()}


def _fix(data: dict[str, Any], names: Sequence[str], path: str, value: Any = None) -> dict[str, Any]:
    """Take a field out of what candidates search and set, and set it to `value` if there is one."""
    candidates = dict(data["candidates"])
    for name in names:
        table = candidates[name]
        kept = {
            part: {key: inner for key, inner in table.get(part, {}).items() if split_path(key) != split_path(path)}
            for part in ("set", "space")
        }
        if value is not None:
            kept["set"][path] = value
        candidates[name] = table | kept
    return data | {"candidates": candidates}


def _check_fields(sweep: Sweep, path: Path) -> None:
    """Refuse settings and domains of fields that are not there, and domains that leave a field's bounds."""
    for name in sweep.candidates:
        _check_candidate(sweep, name, path)
    for control in sweep.confirm.controls:
        sweep.settle(control)


def _check_candidate(sweep: Sweep, name: str, path: Path) -> None:
    candidate = sweep.candidates[name]
    place = f"{path}: " + (f"candidate {name}: " if len(sweep.candidates) > 1 else "")
    baselines = [baseline for baseline in sweep.confirm.baselines if sweep.of(baseline) == name]
    tables: dict[str, Mapping[str, Any]] = {"set": candidate.set, "space": candidate.space}
    tables |= {f"confirm.baselines ({baseline.name})": baseline.set for baseline in baselines}
    fields = _fields(sweep.method(name))
    idle = [key for key in candidate.space if split_path(key)[0] == "finetune"]
    if idle and (objective := sweep.evaluate.objective) != "finetune":
        raise BadInput(f"{place}[space] {idle[0]} cannot be chosen by evaluate.objective {objective!r}; use 'finetune'")
    for table, keys in tables.items():
        for key in keys:
            if ".".join(split_path(key)) not in fields:
                near = suggestion(".".join(split_path(key)), fields)
                raise BadInput(f"{place}[{table}] no field is named {key!r}{near}")
    sweep.candidate(name)
    for baseline in baselines:
        sweep.candidate(name, baseline.set)
    for key, domain in candidate.space.items():
        for value in domain.ends():
            try:
                sweep.candidate(name, {key: value})
            except BadInput as error:
                raise BadInput(f"{place}[space] {key} reaches {value!r}, which is refused: {error}") from None
    for draw in random_draws(candidate.space, TRIED_DRAWS if candidate.space else 0):
        for row, changes in ((name, {}), *((baseline.name, baseline.set) for baseline in baselines)):
            try:
                sweep.candidate(name, draw, changes)
            except BadInput as error:
                raise BadInput(f"{place}[space] can draw {draw} ({row}), which is refused: {error}") from None


def _fields(method: str) -> list[str]:
    """Every field that a candidate of this method can set or search, with its place."""
    records: dict[str, type[Record]] = {
        "method": find_method(method).Config,
        "pretrain": Training,
        "finetune": Finetune,
    }
    return [f"{place}.{name}" for place, record in records.items() for name in field_paths(record)]
