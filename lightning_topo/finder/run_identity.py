"""Which run a learning rate was found for: it says nothing of another model or of other data."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

# Rows of a data set of tensors that are compared.
_ROWS = 64


@dataclass(frozen=True)
class RunIdentity:
    """What a run trains, with what and on what, in words that outlive it, and the objects themselves while they live.

    Two identities are compared by their words: class and shapes of the model, kinds of optimizers, kinds and lengths of
    the data sets. Where both are of this process the objects count as well: another Trainer, another model or other
    data are another run, however alike they are, as the folds of a cross-validation.

    Attributes:
        words: Of ``"model"``, ``"optimizers"`` and ``"data"``, in words.
        objects: Weak references to the Trainer and the model.
        settings: What the optimizers were set to besides their learning rates.
        contents: A digest of each data set's contents, or a weak reference to it, where one of them can be had.
    """

    words: dict[str, str]
    objects: dict[str, Any] = field(default_factory=dict)
    contents: tuple[Any, ...] = ()
    settings: str = ""

    @classmethod
    def of(cls, trainer: Any, module: Any) -> RunIdentity:
        """The identity of a run that has its optimizers and its training data."""
        data = [getattr(loader, "dataset", loader) for loader in trainer.fit_loop._combined_loader.flattened]
        words = {
            "model": _model(module),
            "optimizers": ", ".join(f"{type(o).__name__} of {len(o.param_groups)}" for o in trainer.optimizers),
            "data": ", ".join(map(_data, data)),
        }
        objects = {"Trainer": weakref.ref(trainer), "model": weakref.ref(module)}
        # A data module may make its data sets anew for each fit; those that are handed over are what they are.
        source = trainer.fit_loop._data_source.instance
        handed_over = not hasattr(source, "train_dataloader")
        contents = tuple(_content(item, handed_over) for item in data)
        return cls(words, objects, contents, _settings(trainer.optimizers))

    def differences(self, other: RunIdentity) -> list[str]:
        """In what another run differs: some of "Trainer", "model", "optimizers" and "data"; empty for the same run."""
        found = {name for name, words in self.words.items() if other.words.get(name, words) != words}
        if self.objects and other.objects:
            found |= {name for name, item in self.objects.items() if _differ(item, other.objects[name])}
            found |= {"optimizers"} if self.settings != other.settings else set()
            pairs = zip(self.contents, other.contents, strict=False)
            found |= {"data"} if any(_differ(*pair) for pair in pairs) else set()
        return sorted(found)

    def now(self) -> RunIdentity:
        """The identity of the same run as it is now: it may have grown, been pruned or changed its optimizers."""
        trainer, module = (self.objects[name]() if self.objects else None for name in ("Trainer", "model"))
        if trainer is None or module is None or trainer.fit_loop._combined_loader is None or not trainer.optimizers:
            return self
        return RunIdentity.of(trainer, module)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is nobody's run: whoever is given one, such as the callback of the next fold, begins another.
        return {**self.__dict__, "objects": dict.fromkeys(self.objects, _nobody), "contents": ()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _nobody() -> None:
    """In the place of a weak reference, which cannot be copied."""


def _settings(optimizers: Any) -> str:
    """Hyperparameters of the optimizers, without the learning rates, which schedules and searches change."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    kept = [{name: _plain(value) for name, value in group.items() if not name.endswith("lr")} for group in groups]
    return repr([sorted(settings.items()) for settings in kept])


def _plain(value: Any) -> Any:
    """A setting as it was meant: 0 and 0.0 are the same, and a tensor or an object says nothing."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value if isinstance(item, (int, float))]
    return float(value) if isinstance(value, (int, float)) else value if isinstance(value, str) else None


def _model(module: Any) -> str:
    """Class and shapes; not the names, which pruning and parametrizations change in the course of a run."""
    shapes = sorted(str(tuple(getattr(parameter, "shape", ()))) for parameter in module.parameters())
    return f"{type(module).__name__} of {len(shapes)} tensors ({_digest(' '.join(shapes).encode())})"


def _data(item: Any) -> str:
    length = None
    with suppress(Exception):  # a stream has no length, and code of the user's may raise anything
        length = len(item)
    return f"{type(item).__name__} of {length}"


def _content(item: Any, handed_over: bool) -> Any:
    with suppress(Exception):  # a tensor of a kind that has no bytes
        return _digest(b"".join(_parts(item)))
    with suppress(TypeError):  # lists and the like
        return weakref.ref(item) if handed_over else None
    return None


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str) or a is None or b is None:
        return type(a) is type(b) and a != b
    return a() is None or a() is not b()


def _parts(item: Any) -> Iterator[bytes]:
    """What a data set of torch's own kinds consists of, in bytes; a TypeError for anything else."""
    if isinstance(item, Subset):
        yield repr(list(item.indices)).encode()
        yield from _parts(item.dataset)
    elif isinstance(item, ConcatDataset):
        for inner in item.datasets:
            yield from _parts(inner)
    elif isinstance(item, TensorDataset):
        for tensor in item.tensors:
            rows = torch.linspace(0, max(0, len(tensor) - 1), min(len(tensor), _ROWS)).long()
            yield _bytes(tensor[rows.to(tensor.device)]) + str(tuple(tensor.shape)).encode()
    else:
        raise TypeError(f"expected a data set of tensors, got {type(item).__name__}")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:12]
