"""The certificate that no neurons have become clones: what it says beside what the neurons do."""

import pytest
import torch

import lightning_topo as lt
from lightning_topo.callbacks import CloneCertificate
from lightning_topo.functional import distinct_neurons


def everything(**options):
    return lt.BiLipschitzMonitor(max_neurons=None, max_overhead=None, **options)


def test_all_updates_one_to_one(classifier, trainer, data):
    monitor, module = everything(), classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.02))
    group = lt.NeuronGroup("net.4", (lt.Member("net.4.weight", 0), lt.Member("net.6.weight", 1)))
    start = group.points(module)
    trainer([monitor]).fit(module, data())
    assert {one.group for one in monitor.certificates} == {"net.0", "net.4"}
    for one in monitor.certificates:
        assert one.excludes_clones
        assert (one.updates, one.seen, one.broken) == (24, 24, 0)
        assert str(one) == f"{one.group}: all 24 updates had κ < 1, so that no neurons have become clones."
    ratios = [record.lower for record in monitor.history if record.group == "net.4"]
    bound = {one.group: one.least_ratio for one in monitor.certificates}["net.4"]
    assert bound == pytest.approx(torch.tensor(ratios, dtype=torch.float64).prod().item())
    assert distinct_neurons(group.points(module), start, share=0.0) == 8


def test_the_bound_on_distances_holds(classifier, trainer, data):
    monitor, module = everything(groups="net.0"), classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.05))
    (group,) = [g for g in lt.find_neuron_groups(module, torch.zeros(2, 6)) if g.name == "net.0"]
    start = group.points(module).double()
    trainer([monitor]).fit(module, data())
    (one,) = monitor.certificates
    now = group.points(module).double()
    ratios = torch.pdist(now) / torch.pdist(start)
    assert 0 < one.least_ratio <= ratios.min() * (1 + 1e-5)


def test_a_broken_update_excludes_nothing(classifier, trainer, data):
    monitor = everything()
    trainer([monitor]).fit(classifier(lambda m: torch.optim.SGD(m.parameters(), lr=300.0)), data())
    assert any(one.broken and not one.excludes_clones for one in monitor.certificates)
    worst = max(monitor.certificates, key=lambda one: one.broken)
    assert str(worst).startswith(f"{worst.group}: {worst.seen} of {worst.updates} updates were measured")
    assert f"{worst.broken} of them with κ >= 1, so that clones are not excluded." in str(worst)


@pytest.mark.parametrize(
    "options", [{"every_n_train_steps": 2, "max_neurons": None}, {"max_neurons": 5}], ids=["left out", "sample"]
)
def test_what_was_not_measured_proves_nothing(options, classifier, trainer, data):
    monitor = lt.BiLipschitzMonitor(max_overhead=None, **options)
    trainer([monitor]).fit(classifier(lambda m: torch.optim.SGD(m.parameters(), lr=1e-4)), data())
    assert monitor.certificates
    for one in monitor.certificates:
        assert one.broken == 0
        assert not one.excludes_clones
        assert "clones are not excluded" in str(one)


def test_clones_of_the_start_are_not_told_from_others(classifier, trainer, data):
    module = classifier()
    with torch.no_grad():
        for parameter in module.net[4].parameters():
            parameter.fill_(0.1)
        module.net[6].weight.fill_(0.1)
    monitor = everything(groups="net.4")
    trainer([monitor]).fit(module, data())
    assert not monitor.certificates[0].excludes_clones
    assert not monitor.certificates[0].all_compared


def test_several_optimizers_count_the_updates_of_their_own_groups(classifier, trainer, data):
    class Manual(type(classifier())):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers()[batch_idx % 2 :]:
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=1e-3) for part in (self.net[:4], self.net[6])]

    torch.manual_seed(0)
    monitor = everything()
    trainer([monitor], max_epochs=1).fit(Manual(), data())
    # Of net.4 the second optimizer moves the outgoing weights only; of net.0 the first moves all but those.
    assert {one.group: (one.updates, one.seen) for one in monitor.certificates} == {"net.0": (6, 6), "net.4": (12, 12)}


def test_a_resumed_run_goes_on_counting_and_a_fresh_one_begins_anew(classifier, trainer, data, tmp_path, weights_only):
    whole, first, second = everything(), everything(), everything()
    trainer([whole]).fit(classifier(), data(shuffle=False))
    made = trainer([first], max_epochs=1)
    made.fit(classifier(), data(shuffle=False))
    made.save_checkpoint(tmp_path / "a.ckpt")
    trainer([second]).fit(classifier(), data(shuffle=False), ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert second.certificates == whole.certificates
    trainer([second], max_epochs=1).fit(classifier(), data(shuffle=False))
    assert second.certificates == first.certificates


def test_nothing_was_updated():
    assert everything().certificates == ()
    assert not CloneCertificate("none").excludes_clones
