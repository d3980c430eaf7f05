"""Before anything trains: pack every dataset of a plan and refuse what cannot be used."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from bench.data.dataset import check_usable
from bench.data.pack import Pack, open_pack, pack_size
from bench.plan import Plan
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
            if plan.sweep.pretrain.epochs:
                steps_per_epoch(len(pack.pretraining_rows()), plan.sweep.pretrain.batch_size)
        yield pack
