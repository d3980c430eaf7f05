"""Records: frozen, typed, bounded configuration, and the clear errors of a wrong one."""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import BadInput, suggestion


class Record(BaseModel):
    """Base of every card, sweep, trial and method configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


R = TypeVar("R", bound=Record)


def parse(record: type[R], data: Mapping[str, Any], source: str) -> R:
    """Validate `data` as a `record`; `source` names the file or option it came from in the error."""
    try:
        return record.model_validate(dict(data))
    except ValidationError as error:
        raise BadInput("\n".join(f"{source}: {line}" for line in _lines(record, error))) from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a syntax error becomes one line that names the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None


def canonical_json(value: Any) -> str:
    """One text per value: keys sorted, no blanks, shortest floats; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` upon `base`, table by table; lists and values are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = deep_merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def set_path(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of nested `data` in which the dotted `path` holds `value`."""
    nested: Any = value
    for key in reversed(path.split(".")):
        nested = {key: nested}
    return deep_merge(data, nested)


def field_paths(record: type[Record], prefix: str = "") -> dict[str, Any]:
    """Every leaf field of `record` by its dotted path, with its pydantic FieldInfo, in order."""
    paths: dict[str, Any] = {}
    for name, field in record.model_fields.items():
        inner = nested_record(field.annotation)
        if inner is None:
            paths[prefix + name] = field
        else:
            paths.update(field_paths(inner, f"{prefix}{name}."))
    return paths


def nested_record(annotation: Any) -> type[Record] | None:
    """The Record class inside an annotation (`Gamma`, `Gamma | None`), if there is one."""
    candidates: Sequence[Any] = get_args(annotation) or (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, Record):
            return candidate
    return None


def _lines(record: type[Record], error: ValidationError) -> list[str]:
    """One line per problem: the dotted key, what is wrong, what was given, the nearest valid key."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(whole)"
        if problem["type"] == "extra_forbidden":
            known = _siblings(record, problem["loc"])
            lines.append(f"unknown key {key!r}{suggestion(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"key {key!r} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = problem["input"]
            shown = "" if isinstance(given, Mapping) else f" (given: {given!r})"
            lines.append(f"{key}: {message}{shown}")
    return lines


def _siblings(record: type[Record], location: Sequence[int | str]) -> list[str]:
    """The valid keys at the place of an unknown key."""
    for part in location[:-1]:
        field = record.model_fields.get(str(part))
        if field is None:
            continue  # the key or the place of a record inside a table or a list
        inner = nested_record(field.annotation)
        if inner is None:
            return []
        record = inner
    return list(record.model_fields)
