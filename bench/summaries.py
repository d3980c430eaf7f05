"""One line about each method, dataset, sweep, encoder and protocol, read from their files: nothing heavy is imported.

Methods, encoders and protocols state their line as a plain text in their source, where it is read without running it;
importing them all takes seconds, as they need torch. A test compares both.
"""

import ast
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from bench.cards import Kind, card_paths
from bench.errors import UnknownName

_PACKAGE = Path(__file__).parent


def table(kind: str | None = None) -> Table:
    """One line per thing of `kind`, or of all kinds. Raises UnknownName for another kind."""
    if kind is not None and kind not in KINDS:
        raise UnknownName("kind", kind, KINDS)
    rows = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("", "name", "what it is"):
        rows.add_column(name)
    for heading in [kind] if kind else KINDS:
        for index, (name, summary) in enumerate(KINDS[heading]().items()):
            cells = (heading if index == 0 else "", "bold"), (name, "cyan"), (summary, "")
            rows.add_row(*(Text(_printable(text), style) for text, style in cells))
        rows.add_section()
    return rows


def methods() -> dict[str, str]:
    """The methods of the repository: the text that their class calls `summary`."""
    import methods as package

    paths = sorted(path for folder in package.__path__ for path in Path(folder).glob("*.py") if path.stem != "__init__")
    return {path.stem: next(_class_texts(_parsed(path), "summary"), "") for path in paths}


def encoders() -> dict[str, str]:
    """The entries of `encoders.ENCODERS`."""
    return _dictionary(_parsed(_PACKAGE / "encoders.py"), "ENCODERS")


def protocols() -> dict[str, str]:
    """The entries of `protocols.PROTOCOLS`."""
    return _dictionary(_parsed(_PACKAGE / "evaluation" / "protocols.py"), "PROTOCOLS")


def datasets() -> dict[str, str]:
    """The cards of datasets."""
    return _cards("datasets", "summary")


def sweeps() -> dict[str, str]:
    """The files of sweeps: their questions."""
    return _cards("sweeps", "title")


KINDS: Mapping[str, Callable[[], dict[str, str]]] = {
    "methods": methods,
    "datasets": datasets,
    "sweeps": sweeps,
    "encoders": encoders,
    "protocols": protocols,
}


def _cards(kind: Kind, field: str) -> dict[str, str]:
    return {name: _card_text(path, field) for name, path in card_paths(kind).items()}


def _card_text(path: Path, field: str) -> str:
    try:
        return str(tomllib.loads(path.read_text(encoding="utf-8")).get(field, ""))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:  # one broken file does not hide the others
        return f"unreadable: {path}: {error}"


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _class_texts(module: ast.Module, name: str) -> Iterator[str]:
    """The texts that the module's classes give to the attribute `name`."""
    for kind in module.body:
        if isinstance(kind, ast.ClassDef):
            for line in kind.body:
                named, value = _assigned(line)
                if named == name and isinstance(value, ast.Constant):
                    yield str(value.value)


def _dictionary(module: ast.Module, name: str) -> dict[str, str]:
    """The module's dictionary `name`: its keys, each with the first text among the arguments of its value, a call."""
    values = dict(_assigned(line) for line in module.body)
    constants = {key: value.value for key, value in values.items() if isinstance(value, ast.Constant)}
    whole = values[name]
    assert isinstance(whole, ast.Dict)
    found = {}
    for key, value in zip(whole.keys, whole.values, strict=True):
        assert isinstance(value, ast.Call)
        text = constants[key.id] if isinstance(key, ast.Name) else getattr(key, "value", "")
        found[str(text)] = next(
            each.value for each in value.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
        )
    return found


def _assigned(line: ast.stmt) -> tuple[str, ast.expr | None]:
    """The name and the value of `name = value`, with an annotation or without."""
    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
        return line.target.id, line.value
    if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
        return line.targets[0].id, line.value
    return "", None


def _printable(text: str) -> str:
    """`text` without control characters, which a terminal would obey: cards come from elsewhere."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
