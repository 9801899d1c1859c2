"""The attribute in which a model keeps its learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

_USUAL_NAMES = ("lr", "learning_rate")


@dataclass(frozen=True)
class LearningRateAttribute:
    """A name, dotted or not, on the model, its ``hparams``, its data module or that one's ``hparams``.

    Args:
        name: Such as ``"lr"`` or ``"optimizer.lr"``; a step of the path is an attribute or the key of a mapping.
        roots: Objects on which to look for it.
    """

    name: str
    roots: tuple[Any, ...]

    @classmethod
    def find(cls, module: Any, datamodule: Any = None, name: str = "") -> LearningRateAttribute:
        """The attribute that is called ``name``, or the first of ``lr`` and ``learning_rate`` that there is.

        Raises:
            AttributeError: When there is none, or it does not hold a positive number.
        """
        roots = tuple(_roots(module, datamodule))
        candidates = [cls(candidate, roots) for candidate in ([name] if name else _USUAL_NAMES)]
        found = next((candidate for candidate in candidates if any(candidate._holders())), None)
        if found is None:
            names = " or ".join(repr(candidate.name) for candidate in candidates)
            raise AttributeError(
                f"expected {type(module).__name__} to keep its learning rate in an attribute, or an entry of hparams, "
                f"named {names}, but there is none; pass attr_name=..., or update_attr=False to change nothing"
            )
        value = found.get()
        if isinstance(value, bool) or not isinstance(value, Real) or not float(value) > 0:
            raise AttributeError(
                f"expected {found.name!r} of {type(module).__name__} to be a positive learning rate, got {value!r}; "
                "the rates of the optimizer's parameter groups are taken relative to it"
            )
        return found

    def get(self) -> Any:
        """Its value, on the first object that has it."""
        return next(_entry(holder, key) for holder, key in self._holders())

    def set(self, value: float) -> None:
        """Set it on every object that has it."""
        for holder, key in self._holders():
            if isinstance(holder, Mapping):
                holder[key] = value  # type: ignore[index]
            else:
                setattr(holder, key, value)

    def _holders(self) -> Iterator[tuple[Any, str]]:
        *path, key = self.name.split(".")
        for root in self.roots:
            holder = root
            for step in path:
                holder = _entry(holder, step)
            if _entry(holder, key) is not None:
                yield holder, key


def _roots(module: Any, datamodule: Any) -> Iterator[Any]:
    for owner in (module, datamodule):
        if owner is not None:
            yield owner
            if getattr(owner, "hparams", None):
                yield owner.hparams


def _entry(holder: Any, key: str) -> Any:
    return holder.get(key) if isinstance(holder, Mapping) else getattr(holder, key, None)
