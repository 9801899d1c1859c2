"""What torchmetrics expects of every metric, asked of each of ours."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_topo import metrics as lt_metrics
from lightning_topo.metrics import (
    BettiNumbers,
    BiLipschitzDistortion,
    BottleneckDistance,
    PersistenceEntropy,
    TotalPersistence,
)


@dataclass(frozen=True)
class _Case:
    metric_class: type[Metric]
    arguments: dict
    n_clouds: int

    def new(self) -> Metric:
        return self.metric_class(**self.arguments)

    def inputs(self, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(24, 3, generator=generator)
        return (start, start + 0.1 * torch.randn(24, 3, generator=generator))[: self.n_clouds]


CASES = [
    _Case(BettiNumbers, {"scale": 0.25, "max_dim": 2}, 1),
    _Case(PersistenceEntropy, {"max_dim": 1, "max_neurons": 16}, 1),
    _Case(TotalPersistence, {"max_dim": 1}, 1),
    _Case(BottleneckDistance, {"max_dim": 1}, 2),
    _Case(BiLipschitzDistortion, {}, 2),
]


@pytest.fixture(params=CASES, ids=[case.metric_class.__name__ for case in CASES])
def case(request) -> _Case:
    return request.param


def _values(result: Tensor | dict[str, Tensor]) -> list[float]:
    return (torch.stack(list(result.values())) if isinstance(result, dict) else result).tolist()


def _expected(case: _Case, seeds: list[int]) -> list[float]:
    """The rule by which the documentation merges updates, from the single results."""
    single = torch.tensor([_values(case.new()(*case.inputs(seed))) for seed in seeds])
    if case.metric_class is BiLipschitzDistortion:
        return [single[:, 0].min().item(), *single[:, 1:].amax(0).tolist()]
    return single.mean(0).tolist()


def test_all_are_covered():
    assert sorted(case.metric_class.__name__ for case in CASES) == lt_metrics.__all__


def test_updates_merge_as_documented(case):
    metric = case.new()
    for seed in range(3):
        metric.update(*case.inputs(seed))
    assert _values(metric.compute()) == pytest.approx(_expected(case, [0, 1, 2]), rel=1e-6)


def test_forward_gives_the_batch_and_accumulates(case):
    metric = case.new()
    for seed in range(3):
        assert _values(metric(*case.inputs(seed))) == pytest.approx(_expected(case, [seed]), rel=1e-6)
    assert _values(metric.compute()) == pytest.approx(_expected(case, [0, 1, 2]), rel=1e-6)


def test_reset(case):
    metric = case.new()
    metric.update(*case.inputs(0))
    metric.reset()
    metric.update(*case.inputs(1))
    assert _values(metric.compute()) == _expected(case, [1])


def test_clone_is_independent(case):
    metric = case.new()
    metric.update(*case.inputs(0))
    clone = metric.clone()
    clone.update(*case.inputs(1))
    assert _values(metric.compute()) == _expected(case, [0])
    assert _values(clone.compute()) == pytest.approx(_expected(case, [0, 1]), rel=1e-6)


def test_pickle(case):
    metric = case.new()
    metric.update(*case.inputs(0))
    again = pickle.loads(pickle.dumps(metric))
    again.update(*case.inputs(1))
    assert _values(again.compute()) == pytest.approx(_expected(case, [0, 1]), rel=1e-6)


def test_state_dict(case):
    metric, again = case.new(), case.new()
    assert metric.state_dict() == {}  # as all torchmetrics: kept in checkpoints only when asked
    metric.persistent(True)
    metric.update(*case.inputs(0))
    again.load_state_dict(metric.state_dict())
    again.update(*case.inputs(1))
    assert _values(again.compute()) == pytest.approx(_expected(case, [0, 1]), rel=1e-6)


def test_merge_state(case):
    one, two = case.new(), case.new()
    one.update(*case.inputs(0))
    two.update(*case.inputs(1))
    two.update(*case.inputs(2))
    one.merge_state(two)
    assert _values(one.compute()) == pytest.approx(_expected(case, [0, 1, 2]), rel=1e-6)


def test_compute_before_update_warns_and_gives_nan(case):
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        values = _values(case.new().compute())
    assert all(map(math.isnan, values))


def test_plot(case):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    metric = case.new()
    results = [metric(*case.inputs(seed)) for seed in range(2)]
    for value in (None, results[0], results):
        figure, axes = metric.plot(value)
        assert len(axes.lines) == len(_values(results[0]))
        pyplot.close(figure)
    _, axes = pyplot.subplots()
    metric.plot(ax=axes)
    assert axes.lines
    pyplot.close("all")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_input_dtypes(case, dtype):
    if case.metric_class is BiLipschitzDistortion and dtype != torch.float64:
        rounded = [cloud.to(dtype) for cloud in case.inputs(0)]
        assert all(map(math.isfinite, _values(case.new()(*rounded))))
        return
    inputs = [cloud.to(dtype) for cloud in case.inputs(0)]
    expected = _values(case.new()(*[cloud.float() for cloud in inputs]))
    assert _values(case.new()(*inputs)) == pytest.approx(expected, rel=1e-5)


def test_set_dtype_and_device(case):
    metric = case.new().set_dtype(torch.float64).to("cpu")
    metric.update(*case.inputs(0))
    result = metric.compute()
    result = next(iter(result.values())) if isinstance(result, dict) else result
    assert result.dtype == torch.float64
    assert _values(metric.compute()) == pytest.approx(_expected(case, [0]), rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu(case):
    metric = case.new()
    metric.update(*case.inputs(0))
    metric = metric.to("cuda")
    metric.update(*[cloud.cuda() for cloud in case.inputs(1)])
    result = metric.compute()
    assert (next(iter(result.values())) if isinstance(result, dict) else result).is_cuda
    assert _values(result) == pytest.approx(_expected(case, [0, 1]), rel=1e-5)


def test_declares_what_torchmetrics_asks(case):
    metric = case.new()
    assert metric.is_differentiable is False
    assert metric.full_state_update is False
    assert metric.higher_is_better in (None, False)


def test_a_bad_update_leaves_the_state(case):
    metric = case.new()
    metric.update(*case.inputs(0))
    before = _values(metric.compute())
    bad = [cloud.clone().fill_(math.nan) for cloud in case.inputs(1)]
    with pytest.raises(ValueError, match="finite"):
        metric.update(*bad)
    metric._computed = None
    assert _values(metric.compute()) == before


def _two_processes(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        results = []
        for case in CASES:
            metric = case.new()
            for seed in ([0], [1, 2])[rank]:  # uneven, as the last batches of an epoch are
                metric.update(*case.inputs(seed))
            results.append(_values(metric.compute()))
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_merge_as_one(tmp_path):
    mp.spawn(_two_processes, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        for case, values in zip(CASES, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            assert values == pytest.approx(_expected(case, [0, 1, 2]), rel=1e-6), case


def test_collection():
    collection = MetricCollection([case.new() for case in CASES if case.n_clouds == 1], prefix="topology/")
    cloud = CASES[0].inputs(0)[0]
    result = collection(cloud)
    for case in CASES[:3]:
        assert result[f"topology/{case.metric_class.__name__}"].tolist() == _expected(case, [0])


def test_collection_flattens_the_bi_lipschitz_constants():
    collection = MetricCollection({"distance": BottleneckDistance(), "map": BiLipschitzDistortion()})
    result = collection(*CASES[-1].inputs(0))
    assert set(result) == {"distance", "lower", "upper", "distortion", "criticality"}


def test_collection_keeps_metrics_apart_that_agree_by_chance():
    def new() -> dict[str, Metric]:
        return {
            "near": BettiNumbers(scale=0.1, max_dim=1),
            "far": BettiNumbers(scale=0.5, max_dim=1),
            "entropy": PersistenceEntropy(max_neurons=8),
            "total": TotalPersistence(max_neurons=8),
        }

    collection, apart = MetricCollection(new()), new()
    t = torch.linspace(0, 6.2, 40)
    for cloud in (torch.zeros(4, 2), torch.stack([t.cos(), t.sin()], dim=1)):  # the first cloud: all states agree
        collection.update(cloud)
        for metric in apart.values():
            metric.update(cloud)
    result = collection.compute()
    assert {name: result[name].tolist() for name in apart} == {name: _values(m.compute()) for name, m in apart.items()}
