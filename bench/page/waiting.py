"""What a server shows until the first page is made: the live progress alone. Imports nothing slow."""

from importlib.resources import files

from bench.safe import script_hash


def waiting_page() -> str:
    """One HTML page, which opens the report by itself when there is one."""
    script = _part("live.js")
    filled = {"style": _part("page.css") + _part("live.css"), "script": script, "hash": script_hash(script)}
    page = _part("waiting.html")
    for name, text in filled.items():
        page = page.replace(f"{{{{ {name} }}}}", text)
    return page


def _part(name: str) -> str:
    return (files("bench.page") / name).read_text(encoding="utf-8")
