"""A sweep: what is asked, which candidates race, what is fixed and searched, and how the answer is confirmed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from bench.encoders import ENCODERS
from bench.errors import BadInput, UnknownName
from bench.evaluation.finetune import Finetune
from bench.evaluation.protocols import PROTOCOLS
from bench.records import Record, parse, set_path
from bench.registry import configure, find_method
from bench.space import Domain
from bench.trial import Training

Settings = dict[str, Any]  # dotted path -> value: "gamma.low", "method.gamma.low", "pretrain.lr", "finetune.dropout"
Place = Literal["method", "pretrain", "finetune"]
PLACES: tuple[Place, ...] = get_args(Place)


EXACT = 9  # decimals of a share that count: 0.3 * 10 is 3


class Pretrain(Training):
    """The pretraining of every trial, with its dataset."""

    dataset: str = Field(description="a dataset reference: a card's name or path, or a folder")


class Prune(Record):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), all draws before the first decision."""

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

    def places(self, count: int, *, over: bool) -> int:
        """How many of `count` draws that have come to a rung go on from there; `over`: no other one will come."""
        share = round(count / self.factor, EXACT)
        return math.ceil(share) if over else math.floor(share)

    def share(self, epochs: int, draws: int) -> float:
        """The share of all epochs that draws of `epochs` each train; somewhat more where weak ones come first."""
        trained, going, done = 0, draws, 0
        for rung in (*self.rungs(epochs), epochs):
            trained += going * (rung - done)
            going, done = self.places(going, over=True), rung
        return trained / (draws * epochs) if epochs else 1.0


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


class Candidate(Record):
    """A method in the race, with what is fixed and what is searched; its best configuration is confirmed."""

    method: str = Field("", description="the method; by default the candidate's own name")
    set: Settings = Field(default_factory=dict, description="what is fixed: fields of the method, or pretrain.FIELD")
    space: dict[str, Domain] = Field(default_factory=dict, description="what is searched")
    trials: int | None = Field(None, ge=1, le=100_000, description="how many draws; by default search.trials")


class Baseline(Record):
    """A configuration that a candidate's best one is compared with: the best with some settings changed."""

    name: str = Field(min_length=1)
    of: str = Field("", description="which candidate; may be left out where there is one")
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

    workers: int = Field(1, ge=1, le=4096, description="processes that train one encoder together; at most, if elastic")
    min_workers: int | None = Field(
        None, ge=1, le=4096, description="elastic: a trial also starts, and goes on, with as few workers as this"
    )
    cpus_per_worker: float = Field(1, gt=0, le=4096, description="CPU cores, which are also its threads")
    gpus_per_worker: float | None = Field(
        None, ge=0, le=1, description="a worker's GPU, or the fraction that it shares; none: one where Ray has any"
    )
    accelerator: str | None = Field(
        None, pattern=r"^[\w-]+$", description="the type of GPU as Ray names it, such as A100 or H100; by default any"
    )

    @property
    def fewest(self) -> int:
        """The smallest number of workers that a trial runs with."""
        return self.workers if self.min_workers is None else self.min_workers

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.fewest > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        if self.workers > 1 and 0 < (self.gpus_per_worker or 0) < 1:
            raise ValueError("gpus_per_worker: a fraction needs workers = 1; NCCL joins no workers that share a GPU")
        if self.accelerator and self.gpus_per_worker == 0:
            raise ValueError("accelerator: a type of GPU does not go with gpus_per_worker = 0")
        return self


class Sweep(Record):
    """One sweep, read from `sweeps/NAME.toml`."""

    name: str
    profile: str
    title: str = Field(description="the question")
    candidates: dict[str, Candidate] = Field(min_length=1, description="by name; in a file one may stand alone")
    pretrain: Pretrain
    search: Search = Search()
    evaluate: Evaluate
    finetune: Finetune = Finetune()
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
            *(
                (f"{table} of {name}", [split_path(path) for path in getattr(candidate, table)])
                for name, candidate in self.candidates.items()
                for table in ("set", "space")
            ),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: something is named twice in {list(values)}")
        names = [*self.candidates, *self.confirm.controls, *(baseline.name for baseline in self.confirm.baselines)]
        if len(set(names)) < len(names):
            raise ValueError(f"confirm: a name is used twice among {names}")
        for baseline in self.confirm.baselines:
            known([self.of(baseline)], self.candidates, f"candidate (of baseline {baseline.name!r})")
        return self

    def method(self, name: str) -> str:
        """The method of a candidate."""
        return self.candidates[name].method or name

    def of(self, baseline: Baseline) -> str:
        """The candidate that a baseline belongs to."""
        return baseline.of or (next(iter(self.candidates)) if len(self.candidates) == 1 else "")

    def draws(self, name: str) -> int:
        """How many configurations of a candidate are drawn: no more than its space holds, one where it is empty."""
        candidate = self.candidates[name]
        every = math.prod(domain.size() for domain in candidate.space.values())
        return int(min(candidate.trials or self.search.trials, every))

    def candidate(self, name: str, *layers: Mapping[str, Any]) -> "Settled":
        """Resolve a candidate with `layers` of settings laid upon its own; raises BadInput that names the field."""
        return self.settle(self.method(name), self.candidates[name].set, *layers)

    def settle(self, method: str, *layers: Mapping[str, Any]) -> "Settled":
        """Resolve a method's configuration, the training and the finetuning with `layers` of settings laid upon them.

        Raises BadInput that names the sweep and the field.
        """
        places: dict[str, dict[str, Any]] = {
            "method": {},
            "pretrain": self.pretrain.model_dump(exclude={"dataset"}),
            "finetune": self.finetune.model_dump(),
        }
        for path, value in (item for layer in layers for item in layer.items()):
            place, key = split_path(path)
            places[place] = set_path(places[place], key, value)
        config = configure(method, places["method"], f"sweep {self.name}, method {method}")
        training = parse(Training, places["pretrain"], f"sweep {self.name}, [pretrain]")
        finetune = parse(Finetune, places["finetune"], f"sweep {self.name}, [finetune]")
        return Settled(method, config.model_dump(mode="json"), self._trained(method, config, training), finetune)

    def _trained(self, method: str, config: Record, training: Training) -> Training:
        """The training as it is for a method: on its own encoder, without a budget where nothing is trained."""
        kind = find_method(method)
        self._check_batch(training.batch_size)
        if kind.backbone:
            training = training.model_copy(update={"backbone": kind.backbone})
        try:
            kind.check(config, training.backbone)
        except BadInput as error:
            raise BadInput(f"sweep {self.name}, method {method}: {error}") from None
        if kind.trains:
            return training
        # What trains nothing has no budget: the same control serves every sweep.
        return Training(**training.model_dump(include={"backbone", "image_size", "precision"}), epochs=0)

    def _check_batch(self, size: int) -> None:
        """Raise BadInput for a batch that some number of workers cannot share equally: each step is the same batch."""
        most, fewest = self.resources.workers, self.resources.fewest
        wrong = next((count for count in range(most, fewest - 1, -1) if size % count), None)
        if wrong is None:
            return
        common = math.lcm(*range(fewest, most + 1))
        near = max(1, round(size / common)) * common
        workers = f"resources.workers {most}" if fewest == most else f"{wrong} workers (elastic: {fewest} to {most})"
        raise BadInput(f"sweep {self.name}: pretrain.batch_size {size} is not a multiple of {workers}; try {near}")


@dataclass(frozen=True)
class Settled:
    """Everything that a configuration settles."""

    method: str
    config: dict[str, Any]
    training: Training
    finetune: Finetune


def known(names: Sequence[str], registry: Mapping[str, Any], kind: str) -> None:
    """Raise a ValueError for the first of `names` that `registry` lacks."""
    for name in names:
        if name not in registry:
            raise ValueError(str(UnknownName(kind, name, registry)))


def split_path(path: str) -> tuple[Place, str]:
    """Split "pretrain.lr", "finetune.dropout" or "method.gamma.low" (or just "gamma.low") into place and key."""
    head, _, rest = path.partition(".")
    for place in PLACES:
        if head == place and rest:
            return place, rest
    return "method", path
