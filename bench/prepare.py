"""Before anything trains: pack every dataset of a plan and refuse what cannot be used."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from bench.data.dataset import check_usable
from bench.data.pack import Pack, open_pack, pack_size
from bench.errors import BadData
from bench.method import SupervisedMethod
from bench.plan import Plan
from bench.registry import find_method
from bench.training.pretrain import steps_per_epoch

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def pack_all(plan: Plan, bar: Bar) -> Iterator[Pack]:
    """Build or open each pack, `bar(name)` giving its progress display; yields them.

    Raises BadData or BadInput for a dataset that cannot serve what the sweep asks of it.
    """
    for dataset in plan.evaluate:
        check_usable(dataset, "evaluation")
    check_usable(plan.pretrain, "pretraining")
    size = pack_size(plan.sweep.pretrain.image_size)
    for source in plan.sources.values():
        with bar(source.name) as update:
            pack = open_pack(source, size, plan.cache, update)
        if source.fingerprint in {dataset.source.fingerprint for dataset in plan.evaluate}:
            check_usable(pack, "evaluation")
        if source.fingerprint == plan.pretrain.source.fingerprint:
            check_usable(pack, "pretraining")
            _check_pretraining(plan, pack)
        yield pack


def _check_pretraining(plan: Plan, pack: Pack) -> None:
    """Whether the pretraining set fills a batch, and has labels for the methods that learn from them."""
    sweep = plan.sweep
    settled = [sweep.candidate(name) for name in sweep.candidates] + [
        sweep.settle(name) for name in sweep.confirm.controls
    ]
    for each in settled:
        if each.training.epochs and find_method(each.method).trains:
            steps_per_epoch(len(pack.pretraining_rows()), each.training.batch_size)
        if issubclass(find_method(each.method), SupervisedMethod) and not (pack.classes and len(pack.rows("train"))):
            raise BadData(
                f"{pack.name}: method {each.method!r} learns from labels, and this dataset has none to train on"
            )
