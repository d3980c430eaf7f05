"""What each sweep asked, as the runs kept it beside their results."""

import json
from pathlib import Path


def questions(out: Path) -> dict[str, str]:
    """The title of each sweep kept under `out`, by name."""
    paths = sorted((out / "sweeps").glob("*.json"), key=lambda path: path.stat().st_mtime)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return {str(record["name"]): str(record["title"]) for record in records}
