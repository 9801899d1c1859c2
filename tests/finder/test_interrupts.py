"""Interrupts and signals: whatever strikes, and wherever, the run is as it was, and no signal is lost.

The suite strikes at some lines and moments. At every line of the room, and at twenty moments with each signal, does

    STRIKES=100000 MOMENTS=20 pytest --timeout 0 tests/finder/test_interrupts.py
"""

import os
import random
import signal
import sys
import threading
from multiprocessing import get_context

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment

import lightning_topo.finder
from lightning_topo.callbacks import TopologicalLearningRateFinder
from lightning_topo.finder import topological_lr_find
from lightning_topo.finder._interrupts import DeferredSignals, SearchCutShortError, surely

STRIKES, MOMENTS = int(os.environ.get("STRIKES", "25")), int(os.environ.get("MOMENTS", "1"))
ROOM = os.path.dirname(lightning_topo.finder.__file__)


@pytest.fixture(autouse=True)
def same_handlers():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has ignored in what it runs behind
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Struck:
    """Traces the finder's room, and raises an interrupt at the n-th line that is run there (never by default)."""

    def __init__(self, at=0):
        self.at, self.lines, self.where = at, [], None

    def __enter__(self):
        self.outer = sys.gettrace()
        sys.settrace(self.enter)
        return self

    def __exit__(self, *error):
        sys.settrace(self.outer)

    def enter(self, frame, event, argument):
        return self.line if frame.f_code.co_filename.startswith(ROOM) else None

    def line(self, frame, event, argument):
        if event == "line":
            self.lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(self.lines) == self.at:
                self.where = self.lines[-1]
                raise KeyboardInterrupt
        return self.line


class Other(pl.Callback):
    pass


def everything(trainer, model):
    """What a search could leave behind, in a form that compares."""
    optimizer = trainer.optimizers[0] if trainer.optimizers else None
    return {
        "tensors": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "gradients": [p.grad is None for p in model.parameters()],
        "optimizer": repr(optimizer.state_dict()) if optimizer else None,
        "hooks": len(optimizer._optimizer_step_pre_hooks) if optimizer else None,
        "plain": (list(model.seen), model.last, model.lr, model.training),
        "callbacks": list(trainer.callbacks),
        "loggers": list(trainer.loggers),
        "counters": (trainer.global_step, trainer.current_epoch, trainer.should_stop),
        "schedulers": trainer.fit_loop.epoch_loop.update_lr_schedulers.__name__,
        "random": (random.getstate(), torch.get_rng_state()),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differing(a, b):
    return [key for key in a if not same(a[key], b[key])]


class EnoughError(Exception):
    """The first batch is over."""


OPTIONS = {"hold_steps": 2, "max_lr": 10.0, "tolerance": 1.0, "update_attr": False}


def within_a_fit(lab, at):
    """Everything before the search and after it, with an interrupt at the given line."""
    seen, struck = [], Struck(at)

    class Traced(TopologicalLearningRateFinder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(everything(trainer, pl_module))
            try:
                with struck:
                    super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            finally:
                seen.append(everything(trainer, pl_module))
            raise EnoughError

    model = lab.model(optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=m.lr), dropout=0.5)
    random.seed(3)
    torch.manual_seed(3)
    trainer = lab.trainer(callbacks=[Other(), Traced(**OPTIONS)], logger=lab.RecordingLogger())
    with pytest.raises((EnoughError, SystemExit)):  # Lightning ends the process after an interrupt
        trainer.fit(model, lab.loader())
    return struck, *seen


def before_a_fit(lab, at):
    struck, model = Struck(at), lab.model(dropout=0.5)
    trainer = lab.trainer(callbacks=[Other()], logger=lab.RecordingLogger())
    loader = lab.loader()
    random.seed(3)
    torch.manual_seed(3)
    before = everything(trainer, model)
    try:
        with struck:
            topological_lr_find(trainer, model, loader, **OPTIONS)
    except KeyboardInterrupt:
        pass
    assert trainer.lightning_module is None
    assert model._trainer is None
    return struck, before, everything(trainer, model)


def lines_to_strike(lines, count, seed=0):
    """Some places at which to strike: each line of the room once, at a random one of the times that it is run."""
    times = {}
    for number, line in enumerate(lines, start=1):
        times.setdefault(line, []).append(number)
    draw = random.Random(seed)
    places = [draw.choice(numbers) for numbers in times.values()]
    return sorted(draw.sample(places, min(count, len(places))))


@pytest.mark.parametrize("search", [within_a_fit, before_a_fit])
def test_interrupt_at_any_line_leaves_no_trace(lab, search):
    whole, before, after = search(lab, 0)
    assert differing(before, after) == []
    for at in lines_to_strike(whole.lines, STRIKES):
        struck, before, after = search(lab, at)
        assert struck.where is not None
        assert differing(before, after) == [], struck.where


def test_undo_is_done_wherever_an_interrupt_strikes():
    """Of every pair of a line of ``surely`` and of ``undo``, with the interrupt there."""
    for at in range(1, 40):
        state = {"dirty": False, "undone": 0}

        def work(state=state):
            state["dirty"] = True
            return "value"

        def undo(state=state):
            if state["dirty"]:
                state["undone"] += 1
                state["dirty"] = False

        struck = Struck(at)
        try:
            with struck:
                assert surely(work, undo) == "value"
        except KeyboardInterrupt:
            assert struck.where is not None
        assert not state["dirty"]


def test_signals_wait_for_the_end():
    calls = []
    signal.signal(signal.SIGUSR1, lambda number, frame: calls.append(number))
    signals = DeferredSignals(within=False)

    def work():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)
        assert calls == []
        return "value"

    with pytest.raises(KeyboardInterrupt):
        signals.during(work)
    assert calls == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_gets_through_where_it_may_and_once():
    signals, reached = DeferredSignals(within=False), []

    def step():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the line after")
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # waits
            reached.append("the restore")

    with pytest.raises(KeyboardInterrupt):
        signals.during(lambda: signals.let_through(step))
    assert reached == ["the restore"]


def test_answers_within_or_by_leaving():
    calls = []
    signal.signal(signal.SIGUSR1, lambda number, frame: calls.append(number))
    for within in (True, False):
        signals = DeferredSignals(within)

        def work(signals=signals):
            os.kill(os.getpid(), signal.SIGUSR1)
            signals.answer()
            return len(calls)

        if within:
            assert signals.during(work) == 1
        else:
            with pytest.raises(SearchCutShortError):
                signals.during(work)
            assert len(calls) == 2


def test_handler_that_was_set_meanwhile_stays():
    def mine(number, frame):
        raise AssertionError("not sent")

    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    DeferredSignals(within=True).during(lambda: signal.signal(signal.SIGUSR1, mine))
    assert signal.getsignal(signal.SIGUSR1) is mine


def test_outside_the_main_thread_nothing_is_deferred():
    values = []
    thread = threading.Thread(target=lambda: values.append(DeferredSignals(within=True).during(lambda: 3)))
    thread.start()
    thread.join()
    assert values == [3]


def kills(lab, number, at, times=1):
    """A module whose training step sends its process a signal at its n-th call."""

    class Killed(lab.Classifier):
        calls_so_far = 0

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            type(self).calls_so_far += 1
            if type(self).calls_so_far in range(at, at + times):
                os.kill(os.getpid(), number)
            return loss

    return Killed


@pytest.mark.parametrize("at", [1, 5])
def test_sigterm_in_a_search_ends_the_fit_before_any_update(lab, at):
    model = lab.model(cls=kills(lab, signal.SIGTERM, at))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = lab.trainer(callbacks=[TopologicalLearningRateFinder(hold_steps=6)])
    with pytest.raises(SystemExit) as ended:
        trainer.fit(model, lab.loader())
    assert type(ended.value).__name__ == "SIGTERMException"
    assert trainer.global_step == 0
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("at", [1, 5])
def test_users_own_handler_sees_the_run_as_it_was_and_the_search_goes_on(lab, at):
    model = lab.model(cls=kills(lab, signal.SIGUSR2, at))
    seen = []

    def handler(number, frame):
        seen.append(({name: value.clone() for name, value in model.state_dict().items()}, len(trainer.callbacks)))

    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = signal.signal(signal.SIGUSR2, handler)
    try:
        finder = TopologicalLearningRateFinder(hold_steps=6)
        trainer = lab.trainer(callbacks=[Other(), finder], max_steps=1)
        trainer.fit(model, lab.loader())
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert finder.result.status == "found"
    assert [callbacks for _, callbacks in seen] == [2]
    assert all(torch.equal(value, weights[name]) for name, value in seen[0][0].items())


@pytest.mark.parametrize("handled", ["raises", "returns"])
def test_handlers_are_called_after_a_search_before_a_fit(lab, handled):
    model = lab.model(cls=kills(lab, signal.SIGTERM, 3))
    seen = []

    def handler(number, frame):
        seen.append((model._trainer, dict(model.state_dict()), model.seen[:]))
        if handled == "raises":
            raise SystemExit("terminated")

    signal.signal(signal.SIGTERM, handler)
    trainer = lab.trainer(callbacks=[Other()])
    if handled == "raises":
        with pytest.raises(SystemExit, match="terminated"):
            topological_lr_find(trainer, model, lab.loader(), hold_steps=6)
        assert model.lr == 0.05
    else:
        result = topological_lr_find(trainer, model, lab.loader(), hold_steps=6)
        assert model.lr == result.suggestion()
    assert [(attached, batches) for attached, _, batches in seen] == [(None, [])]
    assert signal.getsignal(signal.SIGTERM) is handler


def slurm(patch):
    """A plugin as of a job of SLURM's, which saves a checkpoint and asks for another run at SIGUSR1; what it asked."""
    names = {"JOB_ID": 1, "NTASKS": 1, "JOB_NAME": "job", "PROCID": 0, "LOCALID": 0, "NODEID": 0, "NTASKS_PER_NODE": 1}
    for name, value in {**names, "NODELIST": "localhost"}.items():
        patch.setenv(f"SLURM_{name}", str(value))
    requeued = []
    connector = pl.trainer.connectors.signal_connector
    patch.setattr(connector, "call", lambda command, **kwargs: requeued.append(command) or 0)
    return SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1), requeued


@pytest.mark.parametrize("before_fit", [False, True])
def test_slurm_requeue_saves_the_run_and_not_a_trial(lab, tmp_path, monkeypatch, before_fit):
    plugin, requeued = slurm(monkeypatch)
    model = lab.model(cls=kills(lab, signal.SIGUSR1, 7))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    finder = TopologicalLearningRateFinder(hold_steps=6)
    options = {"plugins": [plugin], "max_steps": 1}
    if before_fit:
        calls = []
        signal.signal(signal.SIGUSR1, lambda number, frame: calls.append(number))
        topological_lr_find(lab.trainer(**options), model, lab.loader(), hold_steps=6)
        assert calls == [signal.SIGUSR1]
        assert list(tmp_path.glob("hpc*")) == requeued == []
        return
    trainer = lab.trainer(callbacks=[finder, Other()], **options)
    trainer.fit(model, lab.loader())
    assert len(requeued) == 1
    saved = torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)
    assert saved["global_step"] == 0
    assert saved["callbacks"] == {finder.state_key: {"result": None}}
    assert all(torch.equal(value, weights[name]) for name, value in saved["state_dict"].items())
    assert finder.result.status == "found"  # the search went on
    again = TopologicalLearningRateFinder(hold_steps=6)
    lab.trainer(callbacks=[again], max_steps=1).fit(lab.model(), lab.loader(), ckpt_path=tmp_path / "hpc_ckpt_1.ckpt")
    assert again.result.status == "found"


def search_of_two(rank, lab, number):
    class Killed(lab.Classifier):
        """The second process alone is sent a signal."""

        calls_so_far = 0

        def training_step(self, batch, batch_idx):
            Killed.calls_so_far += 1
            if self.global_rank == 1 and Killed.calls_so_far == 5:
                os.kill(os.getpid(), number)
            return super().training_step(batch, batch_idx)

    calls = []
    signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    finder = TopologicalLearningRateFinder(hold_steps=6)
    trainer = lab.trainer(strategy="ddp", devices=2, callbacks=[finder], max_steps=1)
    trainer.fit(lab.model(cls=Killed), lab.loader())
    return calls, finder.result.to_dict()


def test_signal_to_one_process_is_answered_by_all(lab, processes):
    (first, result), (second, other) = processes(2, search_of_two, lab, signal.SIGUSR2)
    assert first == second == [signal.SIGUSR2]
    assert result == other
    assert result["status"] == "found"


def fit_that_is_killed(lab, folder, pipe, plugins):
    """Fit slowly, and tell how it ended and whether all is as it was."""
    os.chdir(folder)

    class Slow(lab.Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if len(self.seen) == 1:
                pipe.send("searching")
            threading.Event().wait(0.005)
            return loss

    model = lab.model(cls=Slow, optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=m.lr))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    finder = TopologicalLearningRateFinder(hold_steps=40, update_attr=False)
    try:
        options = {"default_root_dir": folder, "plugins": list(plugins)}
        lab.trainer(max_epochs=1, callbacks=[finder], **options).fit(model, lab.loader(n=400))
        pipe.send("ended by itself")
    except BaseException as error:
        same = all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        pipe.send((type(error).__name__, same and model.seen == [], finder.result is None))
    os._exit(0)


def killed(lab, folder, number, after, plugins=()):
    """What a process says that is sent a signal after its search has begun, and the code that it ends with."""
    context = get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=fit_that_is_killed, args=(lab, folder, theirs, plugins))
    process.start()
    theirs.close()
    said = []
    try:
        assert ours.poll(60)
        assert ours.recv() == "searching"
        threading.Event().wait(after)
        os.kill(process.pid, number)
        while ours.poll(60):
            said.append(ours.recv())
    except EOFError:
        process.join(60)
    finally:
        process.kill()
    return [word for word in said if word != "searching"], process.exitcode


@pytest.mark.parametrize(
    ("number", "ended"),
    [
        (signal.SIGINT, ([("SystemExit", True, True)], 0)),
        (signal.SIGTERM, ([("SIGTERMException", True, True)], 0)),
        (signal.SIGUSR1, ([], -signal.SIGUSR1)),  # nobody handles it: the process ends at once, as without a search
        (signal.SIGKILL, ([], -signal.SIGKILL)),
    ],
)
def test_signals_from_outside(lab, tmp_path, number, ended):
    draw = random.Random(int(number))
    for _ in range(MOMENTS):
        after = draw.uniform(0, 0.4)
        assert killed(lab, tmp_path, number, after) == ended, after
        assert list(tmp_path.iterdir()) == []


def test_requeue_from_outside(lab, tmp_path, monkeypatch):
    plugin, _ = slurm(monkeypatch)
    start = lab.model(optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=m.lr)).state_dict()
    draw = random.Random(0)
    for _ in range(MOMENTS):
        after = draw.uniform(0, 0.2)
        assert killed(lab, tmp_path, signal.SIGUSR1, after, [plugin]) == (["ended by itself"], 0), after
        (path,) = tmp_path.glob("hpc*")
        saved = torch.load(path, weights_only=True)
        path.unlink()
        assert len(saved["callbacks"]) == 1
        assert (saved["global_step"] == 0) == same(dict(saved["state_dict"]), dict(start)), after
