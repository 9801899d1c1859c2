"""The alarm."""

import pytest
import torch

import lightning_topo as lt
from lightning_topo.callbacks.log_keys import BILIPSCHITZ


class Listening(lt.TopologicalAlarm):
    def __init__(self, **options):
        self.messages = []
        super().__init__(action=self.messages.append, **options)


class Trainer:
    loggers = ()


def kappas(*values):
    return [{"bilipschitz/a/criticality": value, "bilipschitz/b/criticality": 0.1} for value in values]


def hear(alarm, metrics):
    alarm.setup(Trainer, None, "fit")
    for step, row in enumerate(metrics):
        alarm.hear_metrics(Trainer, row, step)
    return alarm.messages


@pytest.mark.filterwarnings("ignore:TopologicalAlarm")
@pytest.mark.parametrize(
    ("values", "given"),
    [((1.2, 1.0, 1.1), 1), ((1.2, 0.9, 1.1, 1.1), 0), ((2, 2, 2, 2, 2, 2), 1), ((0.99,) * 9, 0)],
)
def test_criticality_of_some_updates_in_a_row(values, given):
    messages = hear(Listening(n_updates=3), kappas(*values))
    assert len(messages) == given
    assert all("in a" in message for message in messages)


@pytest.mark.filterwarnings("ignore:TopologicalAlarm")
def test_coverage():
    rows = [{BILIPSCHITZ.coverage: value} for value in (1.0, 0.1, 0.09, 0.01)]
    (message,) = hear(Listening(), rows)
    assert message.startswith("only 9.0% of the due updates have been measured by step 2")
    assert hear(Listening(min_coverage=None), rows) == []


@pytest.mark.filterwarnings("ignore:TopologicalAlarm")
def test_merged_neurons():
    rows = [{"topology/a/distinct": value, "topology/b/distinct": 64.0} for value in (64.0, 60.0, 57.0, 30.0)]
    (message,) = hear(Listening(), rows)
    assert "of 64 distinct neurons of a 57 are left at step 2" in message


def test_in_a_fit_it_warns_once_and_goes_on(classifier, trainer, data):
    def reckless(module):
        return torch.optim.SGD(module.parameters(), lr=100.0)

    alarm = Listening(n_updates=1, min_coverage=None)
    made = trainer([lt.BiLipschitzMonitor(max_overhead=None), alarm], max_epochs=1)
    with pytest.warns(UserWarning, match="TopologicalAlarm: κ was at 1 or above in 1 measured updates in a row"):
        made.fit(classifier(reckless), data())
    assert made.global_step == 12
    assert len(alarm.messages) == 1


def test_an_action_that_fails_ends_no_run():
    def fail(message):
        raise ConnectionError("no route to host")

    alarm = lt.TopologicalAlarm(n_updates=1, action=fail)
    alarm.setup(Trainer, None, "fit")
    with pytest.warns(UserWarning, match=r"TopologicalAlarm: κ was|could not take the action"):
        alarm.hear_metrics(Trainer, kappas(2.0)[0], 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_criticality": 0.0}, "max_criticality must be a number above 0"),
        ({"n_updates": 0}, "n_updates must be an integer of at least 1"),
        ({"min_coverage": 0.0}, "min_coverage must be a share"),
        ({"min_distinct": 1.5}, "min_distinct must be a share"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        lt.TopologicalAlarm(**options)
