"""The monitors do not see the updates of a learning-rate search, whichever comes first in the list."""

import pytest
import torch

import lightning_topo as lt


@pytest.mark.parametrize("finder_first", [True, False])
def test_search_is_not_measured(finder_first, classifier, trainer, data):
    def module():
        made = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=m.lr))
        made.lr = 0.1
        return made

    def run(with_finder):
        monitors = [
            lt.BiLipschitzMonitor(max_overhead=None),
            lt.PersistenceMonitor(max_overhead=None),
            lt.SharpnessMonitor(max_overhead=None, every_n_train_steps=1),
        ]
        finder = lt.TopologicalLearningRateFinder(hold_steps=5)
        callbacks = [finder, *monitors] if finder_first else [*monitors, finder]
        trainer(callbacks if with_finder else monitors, max_epochs=1).fit(module(), data())
        if with_finder:
            assert finder.result.status == "found"
        return monitors

    for plain, beside in zip(run(False), run(True), strict=True):
        assert [record.step for record in beside.history] == [record.step for record in plain.history]
    assert run(True)[0].state_dict()["updates"] == [12]
