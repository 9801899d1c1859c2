"""Work on a GPU that is the same each time, recorded once and then queued in one call."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from lightning_topo._user_warning import warn_user
from lightning_topo.updates.parameter_places import memory_addresses
from lightning_topo.updates.placement import AlikeGroups

# What recordings keep of a device's memory at the most: where more is needed, calls take little of the time.
_MOST_MEMORY = 1 / 64
# Clouds' worth of memory that a comparison takes, as measured: 9 to 15.
_COPIES = 12
# Of different choices of sets.
_MOST_RECORDINGS = 32
# Sets are worked on side by side, for their operations are too small to fill the device.
_LANES = 8

Results = tuple[Tensor, ...]


class Recordings:
    """Work on sets of alike groups, recorded where that is quicker, as long as all tensors stay where they are."""

    def __init__(self) -> None:
        self._of: dict[tuple[AlikeGroups, ...], RecordedWork] = {}
        self._place: Any = None
        self._pools: dict[torch.device, Any] = {}

    def refresh(self, *tensors: Sequence[Tensor]) -> None:
        """Forget what was recorded with other tensors than those that will be read, or with other settings."""
        if not any(tensor.is_cuda for tensor in itertools.chain(*tensors)):
            return
        places = [memory_addresses(some) for some in tensors]
        settings = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
        unknown = any(some and not place for some, place in zip(tensors, places, strict=True))
        place = None if unknown else (places, settings)
        if place != self._place:
            # A pool that no recording uses any more cannot be used again.
            self._of, self._pools, self._place = {}, {}, place

    def results(
        self, sets: Sequence[AlikeGroups], work: Callable[[AlikeGroups], Results]
    ) -> dict[AlikeGroups, Results]:
        """Those of work that can be recorded; of the other sets there is nothing.

        They are overwritten by the next call.
        """
        if self._place is None:
            return {}
        found: dict[AlikeGroups, Results] = {}
        for device in {one.device for one in sets if one.device.type == "cuda"}:
            fit = tuple(one for one in sets if one.device == device and _fits(one))
            recording = self._recording(device, fit) if fit else None
            if recording is not None:
                found |= zip(fit, recording([partial(work, one) for one in fit]), strict=True)
        return found

    def _recording(self, device: torch.device, sets: tuple[AlikeGroups, ...]) -> RecordedWork | None:
        """That of these sets; None where too many choices of sets have been recorded."""
        if sets not in self._of and len(self._of) < _MOST_RECORDINGS:
            pool = self._pools.setdefault(device, torch.cuda.graph_pool_handle())
            self._of[sets] = RecordedWork(device, pool, _lanes(sets))
        return self._of.get(sets)


def _bytes(one: AlikeGroups) -> int:
    n, dimension = one.shape
    return 4 * _COPIES * len(one.groups) * n * dimension


def _room(device: torch.device) -> float:
    return _MOST_MEMORY * torch.cuda.get_device_properties(device).total_memory


def _fits(one: AlikeGroups) -> bool:
    """Whether all lies on one device, and takes little of its memory."""
    blocking = os.environ.get("CUDA_LAUNCH_BLOCKING", "0") == "1"
    if blocking or torch.version.hip is not None or any(part.device != one.device for part, _ in one.parts):
        return False  # on ROCm it was never tried
    return _bytes(one) <= _room(one.device)


def _lanes(sets: Sequence[AlikeGroups]) -> int:
    """How many sets can be worked on at a time in the memory that there is."""
    needed = sorted(map(_bytes, sets), reverse=True)[:_LANES]
    room = _room(sets[0].device)
    return max(1, max(count for count in range(len(needed) + 1) if sum(needed[:count]) <= room))


class RecordedWork:
    """Some hundred operations as one CUDA graph: what takes milliseconds to queue one by one takes microseconds then.

    The first call does the work as it is, for that loads the kernels; the second records it. Nothing waits for the
    device, and the results are the same, bit for bit. Where recording fails, a warning says so, and the work is done as
    it is from then on.

    The work must be of operations on the device alone, with nothing read back, whose shapes do not depend on values.
    It may read tensors that stay where they are, and nothing else that changes; when they are moved, make another one.

    Args:
        device: A CUDA device.
        pool: Memory that other recordings may share, of ``torch.cuda.graph_pool_handle``: all are replayed one after
            the other.
        lanes: How many pieces of the work are done at a time.
    """

    def __init__(self, device: torch.device, pool: Any, lanes: int = 1) -> None:
        self._device, self._pool, self._lanes = device, pool, lanes
        self._calls = 0
        self._failed = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: list[Results] = []

    def __call__(self, work: Sequence[Callable[[], Results]]) -> list[Results]:
        """Queue pieces of work, none of which needs another, on the current stream.

        Returns:
            The results of each, which the next call overwrites.
        """
        if torch.cuda.is_current_stream_capturing():  # the training step itself is being recorded
            return [piece() for piece in work]
        self._calls += 1
        if self._graph is None and self._calls > 1 and not self._failed:
            self._record(work)
        if self._graph is None:
            return [piece() for piece in work]
        self._graph.replay()
        return self._results

    def _record(self, work: Sequence[Callable[[], Results]]) -> None:
        graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[self._device.index]
        state = generator.clone_state()
        current = torch.cuda.current_stream(self._device)
        first, *others = streams = _streams(self._device)[: self._lanes]
        first.wait_stream(current)
        try:
            with torch.cuda.stream(first):
                # Other threads may do what they like meanwhile.
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    for other in others:
                        other.wait_stream(first)
                    results = []
                    for piece, stream in zip(work, itertools.cycle(streams), strict=False):
                        with torch.cuda.stream(stream):
                            results.append(piece())
                    for other in others:
                        first.wait_stream(other)
                finally:
                    graph.capture_end()
            self._graph, self._results = graph, results
        except RuntimeError as error:  # out of memory, too
            self._failed = True
            generator.graphsafe_set_state(state)  # a recording that broke off would leave it in no state to be used
            warn_user(
                f"Measuring an update could not be recorded as a CUDA graph ({str(error).splitlines()[0]}): it goes on "
                "operation by operation, with the same results, and takes more of the host's time."
            )
        current.wait_stream(first)


@cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    """Streams to record on, whose workspaces for matrix products are in nobody's pool."""
    streams = [torch.cuda.Stream(device) for _ in range(_LANES)]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            one = torch.ones(1, 8, 8, device=device)
            torch.baddbmm(one, one, one, out=torch.empty_like(one))
    return streams
