"""A sweep: what is asked, what is fixed, what is searched, and how the answer is confirmed."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bench.cards import find_card
from bench.encoders import ENCODERS
from bench.errors import BadInput, UnknownName, suggestion
from bench.evaluation.protocols import PROTOCOLS
from bench.records import Record, deep_merge, digest, field_paths, parse, read_toml, set_path
from bench.registry import configure, find_method
from bench.space import Domain, Value, random_draws
from bench.trial import Training

TRIED_DRAWS = 64  # joint draws of the space that must be valid, alone and under each baseline

Settings = dict[str, Any]  # dotted path -> value: "gamma.low", "method.gamma.low" or "pretrain.lr"


class Pretrain(Training):
    """The pretraining of every trial, with its dataset."""

    dataset: str = Field(description="a dataset reference: a card's name or path, or a folder")


class Prune(Record):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) on the validation objective."""

    scheduler: Literal["asha", "none"] = "asha"
    grace: int = Field(1, ge=1, description="epochs before the first decision")
    factor: float = Field(3, gt=1, description="one of `factor` trials goes on from each rung")

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """The epochs at which a trial may be stopped, all before the last."""
        rungs, epoch = [], float(self.grace)
        while self.scheduler == "asha" and math.ceil(epoch) < epochs:
            rungs.append(math.ceil(epoch))
            epoch *= self.factor
        return tuple(rungs)


class Search(Record):
    """How configurations are drawn."""

    sampler: Literal["tpe", "random", "gp", "qmc"] = "tpe"
    trials: int = Field(12, ge=1, le=100_000, description="how many configurations are drawn")
    seed: int = Field(0, ge=0, lt=2**31, description="of the sampler")
    startup: int = Field(5, ge=1, description="random draws before the sampler learns from results")
    training_seed: int = Field(1000, ge=0, lt=2**31, description="of every search trial; not one of confirm's")
    prune: Prune = Prune()


class Evaluate(Record):
    """What judges the encoders."""

    datasets: tuple[str, ...] = Field(min_length=1, description="dataset references")
    protocols: tuple[str, ...] = Field(("linear", "knn"), min_length=1, description="evaluation protocols")
    objective: str = Field("linear", description="the protocol whose mean validation score is maximised")


class Baseline(Record):
    """A configuration that the best one is compared with: the best with some settings changed."""

    name: str = Field(min_length=1)
    set: Settings


class Confirm(Record):
    """The best configuration, baselines and controls, re-run on seeds that the search never used."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        (0, 1, 2), description="training seeds; empty: no confirmation"
    )
    baselines: tuple[Baseline, ...] = ()
    controls: tuple[str, ...] = Field(("random_init",), description="methods that every table shows beside it")


class Resources(Record):
    """What one trial gets; it changes how fast a result comes, never which."""

    workers: int = Field(1, ge=1, le=4096, description="processes that train one encoder together")
    cpus_per_worker: float = Field(1, gt=0, description="CPU cores, which are also its threads")
    gpus_per_worker: float | None = Field(None, ge=0, description="GPUs, fractions too; none: one where Ray has any")


class Sweep(Record):
    """One sweep, read from `sweeps/NAME.toml`."""

    name: str
    profile: str
    title: str = Field(description="the question")
    method: str
    set: Settings = Field(default_factory=dict, description="fixed hyperparameters of the method")
    pretrain: Pretrain
    space: dict[str, Domain] = Field(default_factory=dict)
    search: Search = Search()
    evaluate: Evaluate
    confirm: Confirm = Confirm()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        known(self.evaluate.protocols, PROTOCOLS, "protocol")
        known([self.pretrain.backbone], ENCODERS, "encoder")
        if self.evaluate.objective not in self.evaluate.protocols:
            raise ValueError(f"evaluate.objective {self.evaluate.objective!r} is not among evaluate.protocols")
        if self.search.training_seed in self.confirm.seeds:
            raise ValueError(
                f"search.training_seed {self.search.training_seed} is also in confirm.seeds: "
                "a configuration chosen with a seed is not confirmed by it"
            )
        for name, values in (
            ("confirm.seeds", self.confirm.seeds),
            ("evaluate.datasets", self.evaluate.datasets),
            ("evaluate.protocols", self.evaluate.protocols),
            ("space", [split_path(path) for path in self.space]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: something is named twice in {list(values)}")
        names = ["best", *self.confirm.controls, *(baseline.name for baseline in self.confirm.baselines)]
        if len(set(names)) < len(names):
            raise ValueError(f"confirm: a name is used twice among {names}")
        return self

    @property
    def id(self) -> str:
        """Identity of what is asked; resources do not change an answer, nor does the number of draws."""
        asked = self.model_dump(mode="json", exclude={"resources": True, "title": True, "search": {"trials"}})
        return digest(asked)

    def settings(self, *layers: Mapping[str, Any]) -> tuple[dict[str, Any], Training]:
        """Resolve the method's configuration and the training with `layers` of settings laid upon the sweep's.

        Raises BadInput that names the sweep and the field.
        """
        config: dict[str, Any] = {}
        training = self.pretrain.model_dump(exclude={"dataset"})
        for path, value in (item for layer in (self.set, *layers) for item in layer.items()):
            place, key = split_path(path)
            if place == "pretrain":
                training = set_path(training, key, value)
            else:
                config = set_path(config, key, value)
        resolved = configure(self.method, config, f"sweep {self.name}, method {self.method}")
        trained = parse(Training, training, f"sweep {self.name}, [pretrain]")
        workers = self.resources.workers
        if trained.batch_size % workers:
            size = f"pretrain.batch_size {trained.batch_size}"
            raise BadInput(f"sweep {self.name}: {size} is not a multiple of resources.workers {workers}")
        kind = find_method(self.method)
        if kind.backbone:
            trained = trained.model_copy(update={"backbone": kind.backbone})
        try:
            kind.check(resolved, trained.backbone)
        except BadInput as error:
            raise BadInput(f"sweep {self.name}, method {self.method}: {error}") from None
        return resolved.model_dump(mode="json"), trained


def known(names: Sequence[str], registry: Mapping[str, Any], kind: str) -> None:
    """Raise a ValueError for the first of `names` that `registry` lacks."""
    for name in names:
        if name not in registry:
            raise ValueError(str(UnknownName(kind, name, registry)))


def split_path(path: str) -> tuple[Literal["method", "pretrain"], str]:
    """Split "pretrain.lr" or "method.gamma.low" (or just "gamma.low") into its place and its key."""
    head, _, rest = path.partition(".")
    if head == "pretrain" and rest:
        return "pretrain", rest
    return "method", rest if head == "method" and rest else path


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
    over: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> Sweep:
    """Read the sweep of a name or path with a profile, tables laid over it, and `path=value` settings.

    A setting of a swept field fixes it: the field leaves the search space. Raises BadInput with the file and
    the field of everything that is wrong in it.
    """
    path = find_card("sweeps", reference)
    data = read_toml(path)
    profiles = _table(data.pop("profile", {}), f"{path}: profile")
    default = str(data.pop("default_profile", next(iter(profiles), "")))
    chosen = profile or default
    if chosen and chosen not in profiles:
        raise BadInput(f"{path}: no profile is named {chosen!r}{suggestion(chosen, profiles)}")
    data = deep_merge(data, _table(profiles.get(chosen, {}), f"{path}: profile.{chosen}"))
    for name in ("set", "space", "pretrain"):
        _table(data.get(name, {}), f"{path}: {name}")
    data = deep_merge(data, over or {})
    data |= {"name": path.stem, "profile": chosen or "default"}
    data = _apply_settings(data, settings)
    sweep = parse(Sweep, data, str(path))
    _check_fields(sweep, path)
    return sweep


def _table(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{place} must be a table (given: {value!r})")
    return value


def _apply_settings(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    sections = set(Sweep.model_fields) - {"name", "profile", "set", "space", "pretrain"}
    for path, value in map(parse_setting, settings):
        place, key = split_path(path)
        if path.partition(".")[0] in sections and path.partition(".")[0] != "method":
            data = set_path(data, path, value)
            continue
        space = {name: domain for name, domain in data.get("space", {}).items() if split_path(name) != (place, key)}
        data = data | {"space": space}
        data = (
            set_path(data, path, value) if place == "pretrain" else data | {"set": data.get("set", {}) | {key: value}}
        )
    return data


def _check_fields(sweep: Sweep, path: Path) -> None:
    """Refuse settings and domains of fields that are not there, and domains that leave a field's bounds."""
    fields = {("method", name) for name in field_paths(find_method(sweep.method).Config)}
    fields |= {("pretrain", name) for name in field_paths(Training)}
    names = [f"{place}.{name}" for place, name in sorted(fields)]
    places = {"set": sweep.set, "space": sweep.space}
    places |= {f"confirm.baselines ({baseline.name})": baseline.set for baseline in sweep.confirm.baselines}
    for table, keys in places.items():
        for key in keys:
            place, field = split_path(key)
            if (place, field) not in fields:
                raise BadInput(f"{path}: [{table}] no field is named {key!r}{suggestion(f'{place}.{field}', names)}")
    sweep.settings()
    for baseline in sweep.confirm.baselines:
        sweep.settings(baseline.set)
    for key, domain in sweep.space.items():
        for value in domain.ends():
            _check_end(sweep, path, key, value)
    for draw in random_draws(sweep.space, TRIED_DRAWS):
        for name, changes in (("best", {}), *((baseline.name, baseline.set) for baseline in sweep.confirm.baselines)):
            try:
                sweep.settings(draw, changes)
            except BadInput as error:
                raise BadInput(f"{path}: [space] can draw {draw} ({name}), which is refused: {error}") from None
    for control in sweep.confirm.controls:
        find_method(control)


def _check_end(sweep: Sweep, path: Path, key: str, value: Value) -> None:
    try:
        sweep.settings({key: value})
    except BadInput as error:
        raise BadInput(f"{path}: [space] {key} reaches {value!r}, which is refused: {error}") from None
