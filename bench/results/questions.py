"""What each sweep asked and how it was defined, as the runs kept it beside their results."""

import json
from pathlib import Path
from typing import Any


def sweep_records(out: Path) -> dict[str, dict[str, Any]]:
    """The definitions of the sweeps kept under `out`, by sweep id; a file that holds none is left out."""
    records = {}
    for path in _files(out):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # a report does without a title
        if isinstance(record, dict) and "sweep_id" in record:
            records[str(record["sweep_id"])] = record
    return records


def questions(out: Path) -> dict[str, str]:
    """The title of each sweep kept under `out`, by name; of several versions the one kept last."""
    return {str(record["name"]): str(record["title"]) for record in sweep_records(out).values()}


def _files(out: Path) -> list[Path]:
    return sorted((out / "sweeps").glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name))
