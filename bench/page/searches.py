"""Optuna's own figures of a search, from the stored study: one set for each candidate."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from bench.growing import fetched
from bench.page.figures import Figure
from bench.safe import label

MOST_DRAWS = 500  # that a figure shows, evenly spread over the search
LEAST = 2  # finished draws that a figure needs
SCALE = ((0, "#79b0f2"), (0.5, "#8a63d2"), (1, "#d6336c"))
RANKED = 4  # finished draws without which importances say nothing


@dataclass(frozen=True)
class Searched:
    """A candidate's figures; `missing` says in a sentence why there are none, or not all."""

    candidate: str
    figures: tuple[Figure, ...]
    missing: str = ""


def searches(out: Path | None, sweep: str, sweep_id: str, record: Mapping[str, Any]) -> list[Searched]:
    """The figures of every candidate that the sweep's `record` names."""
    candidates = record.get("candidates")
    names = [str(name) for name in candidates] if isinstance(candidates, Mapping) else []
    if out is None or not names:
        return [
            Searched(sweep, (), "The sweep's definition was not kept beside its results: no figures of the search.")
        ]
    path = out / "studies" / f"{Path(sweep).name}-{sweep_id[:12]}.log"
    if not fetched(path).is_file():
        return [Searched(name, (), f"The study {path.name} is missing: no figures of the search.") for name in names]
    return [_searched(name, path) for name in names]


def _searched(name: str, path: Path) -> Searched:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        trials = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    except Exception as error:  # a damaged journal raises whatever its lines lead to
        return Searched(name, (), f"The study {path.name} cannot be read ({type(error).__name__}): no figures.")
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    complete = sum(trial.state == TrialState.COMPLETE for trial in ended)
    searched = {param for trial in ended for param in trial.params}
    if complete < LEAST or not searched:
        why = "nothing was searched" if complete and not searched else f"{complete} finished draws are too few"
        return Searched(name, (), f"No figures of the search: {why}.")
    study = _copy(_spread(ended))
    few = "" if len(ended) <= MOST_DRAWS else f" {MOST_DRAWS} of {len(ended):,} draws are shown, evenly spread."
    figures, missing = [], []
    for title, note, least, width, draw in _KINDS:
        if complete < least or (draw is _coordinates and len(searched) < LEAST):
            missing.append(f"{title}: needs {least} finished draws" + " and 2 parameters" * (draw is _coordinates))
            continue
        try:
            figures.append(_figure(title, note + few, width, draw(study)))
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            missing.append(f"{title}: {error}")
    return Searched(name, tuple(figures), ". ".join(missing) + ("." if missing else ""))


def _coordinates(study: optuna.Study) -> Any:
    return _lines(optuna.visualization.plot_parallel_coordinate(study, target_name="objective"))


_KINDS: tuple[tuple[str, str, int, int, Callable[[optuna.Study], Any]], ...] = (
    (
        "Objective against each hyperparameter",
        "Validation objective of each draw by the value of each searched hyperparameter.",
        LEAST,
        560,
        lambda study: optuna.visualization.plot_slice(study, target_name="objective"),
    ),
    (
        "Optimisation history",
        "Validation objective of each draw in turn, and the best so far.",
        LEAST,
        0,
        lambda study: optuna.visualization.plot_optimization_history(study, target_name="objective"),
    ),
    (
        "Parameter importances",
        "Optuna's PED-ANOVA (Watanabe et al. 2023): which parameter separates good draws from the rest.",
        RANKED,
        0,
        lambda study: optuna.visualization.plot_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), target_name="objective"
        ),
    ),
    ("Parallel coordinates", "Each draw as a line through its values and its objective.", LEAST, 640, _coordinates),
)


def _figure(title: str, note: str, width: int, figure: Any) -> Figure:
    spec = json.loads(figure.to_json())
    layout = spec["layout"]
    for name in ("template", "title", "width"):
        layout.pop(name, None)
    for text in layout.get("annotations", ()):
        text["font"] = {"size": 10}  # without Optuna's gray: the page's colour
    data = [_recoloured(trace) for trace in spec["data"]]
    return Figure(title, note, {"data": data, "layout": layout}, least=width)


def _recoloured(value: Any) -> Any:
    """The same trace with a colour scale that can be seen on light and on dark pages."""
    if isinstance(value, dict):
        kept = {key: _recoloured(inner) for key, inner in value.items() if key not in ("uid", "template")}
        return kept | ({"colorscale": SCALE} if "colorscale" in kept else {})
    return [_recoloured(inner) for inner in value] if isinstance(value, list) else value


def _lines(figure: Any) -> Any:
    """Parallel coordinates with lines that can be seen on light and on dark pages: coloured by their first place."""
    for trace in figure.data:
        if trace.mode == "lines" and trace.customdata is not None:
            share = min(1.0, max(0.0, float(trace.y[0])))
            trace.line.color, trace.opacity = _between(share), 0.8
    return figure


def _between(share: float) -> str:
    """The colour of `SCALE` at 0..1."""
    upper = next(place for place in range(1, len(SCALE)) if share <= SCALE[place][0])
    (start, low), (end, high) = SCALE[upper - 1], SCALE[upper]
    part = (share - start) / (end - start)
    mixed = (round(a + part * (b - a)) for a, b in zip(_rgb(low), _rgb(high), strict=True))
    return "#" + "".join(f"{level:02x}" for level in mixed)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _spread(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    if len(trials) <= MOST_DRAWS:
        return trials
    best = max(range(len(trials)), key=lambda place: (_value(trials[place]), -place))
    places = {round(place * (len(trials) - 1) / (MOST_DRAWS - 1)) for place in range(MOST_DRAWS)} | {best}
    return [trials[place] for place in sorted(places)]


def _value(trial: FrozenTrial) -> float:
    return trial.value if trial.state == TrialState.COMPLETE and trial.value is not None else float("-inf")


def _copy(trials: list[FrozenTrial]) -> optuna.Study:
    """A study of the same trials whose names and values are plain text to plotly."""
    study = optuna.create_study(direction="maximize", study_name="search")
    for trial in trials:
        params = {label(name): _plain(value) for name, value in trial.params.items()}
        distributions = {label(name): _plainly(kind) for name, kind in trial.distributions.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study.add_trial(
                optuna.trial.create_trial(
                    state=trial.state,
                    value=trial.value,
                    params=params,
                    distributions=distributions,
                    intermediate_values=trial.intermediate_values,
                )
            )
    return study


def _plain(value: Any) -> Any:
    return label(value) if isinstance(value, str) else value


def _plainly(kind: BaseDistribution) -> BaseDistribution:
    if isinstance(kind, CategoricalDistribution):
        return CategoricalDistribution([_plain(choice) for choice in kind.choices])
    return kind
