"""The time budget, on a clock that the test moves."""

import pytest

from lightning_topo.callbacks._budget import OverheadBudget


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(max_overhead, n_steps, step_time, cost):
    clock = Clock()
    budget = OverheadBudget(max_overhead, clock)
    budget.start()
    for _ in range(n_steps):
        clock.now += step_time
        if budget.admits():
            with budget.spending():
                clock.now += cost
    return budget, clock


@pytest.mark.parametrize("max_overhead", [0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("cost", [0.1, 1.0, 30.0])
def test_spends_three_fifths_of_the_share(max_overhead, cost):
    n_steps = 10_000
    budget, _ = run(max_overhead, n_steps, 1.0, cost)
    allowed = max(cost, 0.6 * max_overhead * n_steps)
    assert budget.spent <= allowed + 1e-9
    assert budget.spent > min(n_steps * cost, allowed) - 2 * cost
    assert budget.coverage == budget.made / n_steps


def test_none_admits_everything():
    budget, _ = run(None, 50, 1.0, 1000.0)
    assert (budget.due, budget.made, budget.coverage) == (50, 50, 1.0)


def test_the_first_of_each_kind_is_admitted():
    clock = Clock()
    budget = OverheadBudget(0.05, clock)
    budget.start()
    for kind in ("a", "b"):
        assert budget.admits(kind)
        with budget.spending():
            clock.now += 5.0
    assert not budget.admits("a")
    assert not budget.admits("b")


def test_costs_are_those_of_the_kind():
    clock = Clock()
    budget = OverheadBudget(0.1, clock)
    budget.start()
    for kind, cost in (("cheap", 0.1), ("dear", 10.0)):
        assert budget.admits(kind)
        with budget.spending():
            clock.now += cost
    clock.now += 300.0
    assert budget.admits("cheap")
    assert not budget.admits("dear")


def test_another_run_knows_no_cost_and_no_count():
    budget, _ = run(0.05, 100, 1.0, 10.0)
    assert budget.made
    budget.start()
    assert not budget.admits()
    assert budget.left_all_out  # since this start
    budget.forget()
    budget.start()
    assert (budget.due, budget.made, budget.left_all_out) == (0, 0, False)
    assert budget.admits()
    assert (budget.due, budget.made, budget.left_all_out) == (1, 1, False)


def test_a_failing_measurement_is_charged_too():
    clock = Clock()
    budget = OverheadBudget(0.05, clock)
    budget.start()
    assert budget.admits()

    def fail():
        with budget.spending():
            clock.now += 7.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert budget.spent == 7.0


def test_a_dear_first_measurement_waits_for_a_run_that_can_pay_it():
    clock = Clock()
    budget = OverheadBudget(0.1, clock)
    budget.start()
    assert budget.admits("cheap", guess=0.019)
    assert not budget.admits("dear", guess=0.1)
    assert not budget.admits("dear", guess=12.0, run_time=199.0)
    assert budget.admits("dear", guess=12.0, run_time=201.0)
    with budget.spending():
        clock.now += 10.0
    assert not budget.admits("dear", run_time=1e9)  # its cost is known by now: only time that has passed counts


def test_other_work_is_not_charged_to_the_measurement_before_it():
    clock = Clock()
    budget = OverheadBudget(0.5, clock)
    budget.start()
    assert budget.admits()
    with budget.spending():
        clock.now += 1.0
    assert not budget.affords("figures", guess=3.0)
    clock.now += 20.5
    assert budget.affords("figures", guess=3.0)
    with budget.spending(kind="figures"):
        clock.now += 3.0
    assert budget.spent == 4.0
    assert not budget.affords("figures")  # 4 + 3 > three tenths of 20.5
    assert budget.affords("figures", share=1.0)
    clock.now += 5.0
    assert budget.admits()  # 4 + 1 <= three tenths of 25.5
