"""The low, middle and high values of what a sweep searches, and how a value is told."""

from bench.results.wording import number
from bench.space import Domain, Value

PLACES = ("low", "middle", "high")


def ends(domain: Domain) -> tuple[Value, ...]:
    """The low, middle and high value of a range, in the logarithm where it is so; first, middle and last of a list."""
    if domain.choice is not None:
        values = domain.choice
        return tuple(dict.fromkeys((values[0], values[len(values) // 2], values[-1])))
    return tuple(dict.fromkeys((*domain.ends()[:1], middle(domain), *domain.ends()[1:])))


def middle(domain: Domain) -> Value:
    """The middle of a range, on its grid where it has one; the middle one of a list."""
    if domain.choice is not None:
        return domain.choice[len(domain.choice) // 2]
    if domain.log_uniform is not None:
        return float((domain.log_uniform[0] * domain.log_uniform[1]) ** 0.5)
    low, high = domain.integers or domain.uniform or (0, 0)
    step = domain.step or (1 if domain.integers else 0)
    half = (high - low) / 2
    value = low + (half // step * step if step else half)
    return int(value) if domain.integers else float(value)


def places(values: tuple[Value, ...], domain: Domain) -> tuple[str, ...]:
    """What each of the `ends` is called; nothing in a list of choices, which has no order."""
    named = domain.choice is None and len(values) == len(PLACES)
    return PLACES if named else ("",) * len(values)


def told(path: str, value: Value) -> str:
    """`gamma.low = 0.3`."""
    return f"{path} = {number(value)}"


def span(domain: Domain) -> str:
    """`0.05 to 0.5, in the logarithm`; `30, 100`."""
    if domain.choice is not None:
        return ", ".join(map(number, domain.choice))
    low, high = domain.ends()
    return f"{number(low)} to {number(high)}{', in the logarithm' if domain.log_uniform else ''}"
