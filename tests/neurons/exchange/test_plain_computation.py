"""Trials in one thread change nothing for the others, and put back all that is the process's."""

import random
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from lightning_topo.neurons.exchange.sandbox import open_sandbox

SDP = ("flash", "math", "mem_efficient", "cudnn")


def switches():
    """All that the process shares and a trial might want otherwise."""
    from torch._dynamo import eval_frame

    sdp = [getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in SDP]
    stance = getattr(getattr(eval_frame, "_stance", None), "stance", None)  # since torch 2.6
    return (torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn.enabled, *sdp, stance)


def modes():
    """What PyTorch notes of modes for the whole process."""
    from torch.utils import _python_dispatch

    return {name: value for name, value in vars(_python_dispatch).items() if name.startswith("_is_in_")}


class Warns(nn.Module):
    """A transformer layer, which has a fast path, with a warning in each pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        warnings.warn("a pass", stacklevel=1)
        np.random.rand()  # noqa: NPY002
        return self.head(self.layer(x) + torch.rand(6) + random.random())


def test_fifty_pairs_of_threads():
    x = torch.randn(2, 3, 6)
    before, noted, filters = switches(), modes(), list(warnings.filters)
    names, failures, states = set(), [], []

    def discover(model):
        try:
            names.add(tuple(group.name for group in find_neuron_groups(model, x)))
        except BaseException as failure:
            failures.append(failure)

    for _ in range(50):
        pair = [threading.Thread(target=discover, args=(Warns(),)) for _ in range(2)]
        states[:] = [torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()]  # noqa: NPY002
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()
        assert torch.equal(torch.get_rng_state(), states[0])
    assert not failures
    assert len(names) == 1
    assert switches() == before
    assert modes() == noted
    assert warnings.filters == filters
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]


def test_other_threads_see_no_switch_and_are_heard():
    """Looked at from another thread in the middle of a pass."""
    before, seen, heard = switches(), [], []

    def look():
        seen.append(switches())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("from elsewhere", stacklevel=1)
        heard.extend(str(warning.message) for warning in caught)

    class Looks(Warns):
        def forward(self, x):
            with warnings.catch_warnings():  # a thread that is in the middle of a pass must not change this
                other = threading.Thread(target=look)
                other.start()
                other.join()
            return super().forward(x)

    filters = list(warnings.filters)
    assert find_neuron_groups(Looks(), torch.randn(2, 3, 6))
    assert set(heard) == {"from elsewhere"}
    assert [now[:-1] for now in seen] == [before[:-1]] * len(seen)  # but for compilation, which takes turns
    assert warnings.filters == filters


def test_a_thread_that_is_within_catch_warnings_throughout():
    """Its filters, put back afterwards, are those from before the trial."""
    began, end = threading.Event(), threading.Event()
    filters = list(warnings.filters)

    def elsewhere():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            began.set()
            end.wait(60)

    class Waits(Warns):
        def forward(self, x):
            if not began.is_set():
                thread.start()
                began.wait(60)
            return super().forward(x)

    thread = threading.Thread(target=elsewhere)
    find_neuron_groups(Waits(), torch.randn(2, 3, 6))
    end.set()
    thread.join()
    assert warnings.filters == filters


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6 runs what it has compiled")
def test_compiled_functions_run_as_they_were_written_and_stay_compiled():
    runs = []

    def backend(graph, inputs):
        return lambda *args: (runs.append(1), graph.forward(*args))[1]

    squared = torch.compile(lambda x: x.relu() ** 2, backend=backend)

    class Uses(nn.Sequential):
        def forward(self, x):
            return self[1](squared(self[0](x)))

    model, x = Uses(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3)
    with torch.no_grad():
        model(x)
        assert len(runs) == 1
        assert [group.name for group in find_neuron_groups(model, x)] == ["0"]
        assert len(runs) == 1
        model(x)
    assert len(runs) == 2


def test_draws_of_other_threads_between_two_passes_do_not_matter():
    """A model that draws noise gives the same output whenever it is run on the same parameters."""
    x = torch.randn(2, 3, 6)
    sandbox = open_sandbox(Warns(), x)
    first = sandbox.run()
    torch.rand(3)
    random.random()
    np.random.rand()  # noqa: NPY002
    assert torch.equal(sandbox.run(), first)
