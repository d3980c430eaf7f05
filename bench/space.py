"""Search spaces: what a sweep file says of one hyperparameter, as an Optuna distribution."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, model_validator

from bench.records import Record

Value = bool | int | float | str


class Domain(Record):
    """The values that one hyperparameter may take; exactly one of the kinds is given."""

    uniform: tuple[float, float] | None = Field(None, description="[low, high]")
    log_uniform: tuple[float, float] | None = Field(None, description="[low, high], uniform in the logarithm; low > 0")
    integers: tuple[int, int] | None = Field(None, description="[low, high], both included")
    choice: tuple[Value, ...] | None = Field(None, description="a list of values")
    step: float | None = Field(None, gt=0, description="grid of uniform or integers")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = {
            name: getattr(self, name)
            for name in ("uniform", "log_uniform", "integers", "choice")
            if getattr(self, name) is not None
        }
        if len(kinds) != 1:
            raise ValueError("give exactly one of uniform, log_uniform, integers, choice")
        (name, values), *_ = kinds.items()
        if name == "choice" and (not values or len(set(map(repr, values))) < len(values)):
            raise ValueError("choice needs values, each once")
        if name != "choice" and not values[0] <= values[1]:
            raise ValueError(f"{name}: low {values[0]} is above high {values[1]}")
        if name == "log_uniform" and values[0] <= 0:
            raise ValueError("log_uniform needs low > 0")
        if name == "choice" and len({float if type(value) is int else type(value) for value in values}) > 1:
            raise ValueError("choice needs values of one type")
        self._check_step(name, values)
        return self

    def _check_step(self, name: str, values: tuple[Any, ...]) -> None:
        if self.step is None:
            return
        if name not in ("uniform", "integers"):
            raise ValueError(f"step goes with uniform or integers, not with {name}")
        if name == "integers" and self.step != int(self.step):
            raise ValueError(f"step of integers must be whole (given: {self.step})")
        steps = (values[1] - values[0]) / self.step
        if abs(steps - round(steps)) > 1e-9:
            raise ValueError(f"step {self.step} does not lead from {values[0]} to {values[1]}")

    def ends(self) -> tuple[Value, ...]:
        """The values whose validity implies that of all others: the bounds, or each choice."""
        return self.choice or self.uniform or self.log_uniform or self.integers or ()

    def size(self) -> float:
        """How many values there are; infinity for a range without a grid."""
        if self.choice is not None:
            return len(self.choice)
        low, high = self.integers or self.uniform or self.log_uniform or (0, 0)
        step = self.step or (1 if self.integers else 0)
        return round((high - low) / step) + 1 if step else math.inf

    def distribution(self) -> BaseDistribution:
        """Return the Optuna distribution of this domain."""
        if self.choice is not None:
            return CategoricalDistribution(self.choice)
        if self.integers is not None:
            low, high = self.integers
            return IntDistribution(low, high, step=int(self.step or 1))
        low_high = self.uniform or self.log_uniform
        assert low_high is not None
        return FloatDistribution(*low_high, log=self.log_uniform is not None, step=self.step)

    def __str__(self) -> str:
        given = self.model_dump(exclude_none=True)
        return ", ".join(
            f"{name} {list(value) if isinstance(value, tuple) else value}" for name, value in given.items()
        )


def random_draws(space: Mapping[str, Domain], count: int) -> Iterator[dict[str, Value]]:
    """Return `count` joint draws, the same ones each time."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    distributions = {name: domain.distribution() for name, domain in space.items()}
    for _ in range(count):
        yield study.ask(distributions).params


def sampler(name: str, seed: int, startup: int) -> optuna.samplers.BaseSampler:
    """Return the named Optuna sampler: "tpe", "random", "gp" or "qmc"."""
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
    if name == "qmc":
        return optuna.samplers.QMCSampler(seed=seed, scramble=True)
    return optuna.samplers.RandomSampler(seed=seed)
