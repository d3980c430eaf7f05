"""Texts of any origin as they may stand in a page, in JSON inside a script element, and in plotly's labels."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 300  # characters of one name in a figure


def exposed(text: object) -> str:
    """`text` on one line, with what cannot be seen (control characters, direction marks) written as \\uXXXX."""
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in str(text))


def label(text: object) -> str:
    """`text` for a plotly label or hover text, which read a subset of HTML: shown as it is."""
    shown = exposed(text)
    return html.escape(shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}...", quote=False)


def script_json(value: Any) -> str:
    """JSON of `value` that cannot end the script element it stands in; NaN and infinities become null."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pretty_json(text: str) -> str:
    """The JSON `text` indented and in ASCII; as it is, without line breaks, where it is none."""
    try:
        return json.dumps(json.loads(text), indent=1, sort_keys=True)
    except (ValueError, RecursionError):
        return exposed(text)


def data_uri(data: bytes, kind: str) -> str:
    """`data` as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def script_hash(text: str) -> str:
    """What a content security policy calls the script whose text this is."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(inner) for inner in value]
    return value
