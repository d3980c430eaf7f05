"""The album of one trial: each kind of picture, or the reason why it is missing."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.pictures.album import Album, Picture, Row, Strip, reread
from bench.pictures.probing import cam_strips, neighbour_strip, probe
from bench.pictures.scene import Scene, open_scene
from bench.pictures.viewing import given_strip, view_strips
from bench.records import parse
from bench.space import Domain

MOST_SAVED = 4  # pictures that a method saved itself


def make_album(
    title: str, trial_id: str, config: str, chosen: Mapping[str, str], record: Mapping[str, Any], out: Path, cache: Path
) -> Album:
    """The pictures of a finished trial.

    `config` is its ledger column; `chosen` what validation chose for the linear probe by dataset fingerprint, as JSON;
    `record` its sweep's definition as the run kept it; `out` the results' folder, `cache` that of the packs.
    """
    try:
        scene = open_scene(config, record, out, cache)
    except BenchError as error:
        return Album(title, trial_id, missing=(f"No pictures: {error}.",))
    kinds: dict[str, Callable[[], list[Strip]]] = {
        "Grad-CAM and neighbours": lambda: _probed(scene, chosen),
        "views": lambda: [*view_strips(scene, _space(record, scene)), *given_strip(scene)],
        "pictures of its own": lambda: saved_strips(scene.folder),
    }
    strips, missing = [], []
    for kind, make in kinds.items():
        try:
            strips += make()
        except (BenchError, OSError) as error:
            missing.append(f"No {kind}: {error}.")
    return Album(title, trial_id, tuple(strips), tuple(missing))


def saved_strips(folder: Path) -> list[Strip]:
    """The pictures that the method saved beside its encoder, such as SRGAN's restored images."""
    strips = []
    for path in sorted(folder.glob("*.png"))[:MOST_SAVED]:
        picture = Picture(reread(path), f"the method's own picture {path.stem}", wide=True)
        strips.append(Strip(f"Saved by the method: {path.stem}", SAVED.get(path.stem, ""), (Row((picture,)),)))
    return strips


SAVED = {"restored": "Validation images, a row each: reduced, restored by the generator, original."}


def _probed(scene: Scene, chosen: Mapping[str, str]) -> list[Strip]:
    """Of the first dataset that is at hand and has a linear probe."""
    reasons = []
    for evaluation in scene.trial.evaluate:
        try:
            strength = float(json.loads(chosen.get(evaluation.fingerprint, ""))["l2"])
        except (ValueError, LookupError, TypeError):
            reasons.append("the linear protocol did not judge it")
            continue
        try:
            probed = probe(scene, evaluation.fingerprint, strength)
        except BenchError as error:
            reasons.append(str(error))
            continue
        return [*cam_strips(scene, probed), neighbour_strip(scene, probed)]
    raise _Missing("; ".join(dict.fromkeys(reasons)) or "the trial was judged on no dataset")


class _Missing(BenchError):
    """No dataset can be shown."""


def _space(record: Mapping[str, Any], scene: Scene) -> dict[str, Domain]:
    """What the sweep searched for candidates of the trial's method."""
    found: dict[str, Domain] = {}
    candidates = record.get("candidates")
    for name, candidate in (candidates if isinstance(candidates, Mapping) else {}).items():
        if isinstance(candidate, Mapping) and (candidate.get("method") or name) == scene.trial.method:
            space = candidate.get("space")
            for path, domain in (space if isinstance(space, Mapping) else {}).items():
                found[str(path)] = parse(Domain, domain, "the sweep's record")
    return found
