"""Methods by name: the module's name in `methods/` is the registry."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

import methods
from bench.encoders import Encoder
from bench.errors import BadInput, UnknownName
from bench.method import Method, SupervisedMethod
from bench.records import Record, parse


def method_names() -> list[str]:
    """The names of the methods in the repository."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def find_method(name: str) -> type[Method]:
    """Return the method class of a name in `methods/`, or of a dotted module path outside it.

    Raises UnknownName for a name that is no module, BadInput for a module that holds no method.
    """
    path = name if "." in name else f"methods.{name}"
    if ("." not in name and name not in method_names()) or not all(part.isidentifier() for part in path.split(".")):
        raise UnknownName("method", name, method_names())
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise BadInput(f"method {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, Method) and member.__module__ == path
    ]
    if len(found) != 1:
        raise BadInput(f"method {name!r}: {path} must define one Method, it defines {len(found)}")
    return found[0]


def configure(name: str, values: Mapping[str, Any], source: str) -> Record:
    """Validate `values` as the configuration of method `name`; defaults are filled in."""
    return parse(find_method(name).Config, values, source)


def build(name: str, values: Mapping[str, Any], encoder: Encoder, classes: int = 0) -> Method:
    """Build the method `name` on `encoder`; `classes`: those of the pretraining data, where it learns from labels."""
    kind, config = find_method(name), configure(name, values, f"method {name}")
    return kind(config, encoder, classes) if issubclass(kind, SupervisedMethod) else kind(config, encoder)
