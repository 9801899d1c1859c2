"""Interrupts of a search: what it has changed is put back whatever strikes, and no signal is lost."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")

# Signals that people, schedulers and operating systems send to end, save or requeue a run. Others (timers, children,
# the size of the terminal) go to their handlers at once: those do not look at the run.
_OF_A_RUN = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK")


def surely(work: Callable[[], Value], undo: Callable[[], None]) -> Value:
    """The value of ``work()``, with ``undo()`` after it, also where an exception strikes on the way to it or within.

    A single ``finally`` is not enough: an interrupt may come after it was entered and before ``undo`` has begun.

    Args:
        work: What may fail or be interrupted.
        undo: What has to be done in any case. It may be called twice: it is to begin anew where it was interrupted, and
            to do nothing where it was done.
    """
    try:
        try:
            return work()
        finally:
            undo()
    finally:
        undo()


class SearchCutShortError(BaseException):
    """A signal has to be answered outside of what the search has set up; no error that ``except Exception`` catches."""


class DeferredSignals:
    """Keeps signals from their handlers while a trial has the run in its hands, and hands them over afterwards.

    A handler may look at the run, as Lightning's for a SLURM requeue does, which saves a checkpoint: it has to find the
    run as it was before the search. Only Ctrl-C gets through at once, as a KeyboardInterrupt, and only while
    ``let_through`` runs; from there on everything waits. Outside the main thread Python runs no handlers, and
    nothing is deferred.

    Args:
        within: Whether the handlers may be called where a search answers to signals, between two trials. Otherwise the
            search is left by a ``SearchCutShortError``, and the handlers are called after ``during``.
    """

    def __init__(self, within: bool) -> None:
        self.pending: list[int] = []
        self._within, self._open = within, False
        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = _watched() if in_main_thread else []
        self._handlers: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}

    def during(self, work: Callable[[], Value]) -> Value:
        """The value of ``work()``, run while signals wait; their handlers are called when it is over."""

        def deferring() -> Value:
            self._install()
            return work()

        try:
            return surely(deferring, self._uninstall)
        finally:
            self._deliver()

    def let_through(self, work: Callable[..., Value], *args: Any) -> Value:
        """The value of ``work(*args)``, in which Ctrl-C may strike."""
        try:
            self._open = True
            return work(*args)
        finally:
            self._open = False

    def answer(self) -> None:
        """Call the handlers of the signals that wait; called while the run is as it was before the search."""
        if not self._within:
            raise SearchCutShortError
        self._uninstall()
        self._deliver()
        self._install()

    def share(self, largest: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Let all processes answer to what any of them was sent, as handlers may talk to each other.

        Args:
            largest: Takes a tensor to its elementwise largest value over all processes.
            device: Where it wants the tensor.
        """
        sent = torch.zeros(max(signal.valid_signals()) + 1, device=device)
        sent[self.pending] = 1
        numbers = largest(sent).nonzero().flatten().tolist()
        self.pending = [number for number in numbers if number in self._handlers]

    def _install(self) -> None:
        for number in self._handlers:
            signal.signal(number, self._defer)

    def _uninstall(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._defer:  # somebody else may have set another one since
                signal.signal(number, handler)

    def _defer(self, number: int, frame: Any) -> None:
        if self._open and self._handlers[number] is signal.default_int_handler:
            self._open = False
            raise KeyboardInterrupt
        self.pending.append(number)

    def _deliver(self) -> None:
        if self.pending:
            number = self.pending.pop(0)
            try:
                self._handlers[number](number, sys._getframe())
            finally:
                self._deliver()


def _watched() -> list[int]:
    """The signals of a run that have a handler in Python, and any other that Lightning answers to."""
    usual = {getattr(signal, name) for name in _OF_A_RUN if hasattr(signal, name)}
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return [
        number
        for number, handler in handlers.items()
        if callable(handler) and (number in usual or type(handler).__name__ == "_HandlersCompose")
    ]
