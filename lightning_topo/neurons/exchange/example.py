"""Example inputs: from what somebody passes, from a batch, from the model itself, or made up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_topo.copy_or_same import copy_or_same

# Enough items that hardly any unit is silent on all of them, few enough that a test costs less than a training step.
_MAX_ITEMS = 4
# Where the ``forward`` of modules that define none comes from.
_WITHOUT_FORWARD = ("torch.nn.modules.module", "pytorch_lightning.core.module", "lightning.pytorch.core.module")
_IMAGE_SIZES = (32, 28, 64, 96, 128, 224, 16, 8)


@dataclass(frozen=True)
class ExampleCall:
    """One way to call a model: ``model(*args, **kwargs)``.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    Example:
        >>> from torch import nn
        >>> ExampleCall((torch.zeros(2, 3),)).on(nn.Linear(3, 4)).shape
        torch.Size([2, 4])
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    method = "forward"

    def on(self, model: nn.Module) -> Any:
        """Whatever ``model`` returns for these arguments."""
        return model(*self.args, **self.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> ExampleCall:
        """The same call with every tensor changed, however deep it lies."""
        return replace(self, args=_map(self.args, change), kwargs=_map(dict(self.kwargs), change))

    def copy(self) -> ExampleCall:
        """The same call on copies of its arguments, which a forward pass may change."""
        args, kwargs = _map((self.args, dict(self.kwargs)), Tensor.clone, copy_or_same)
        return replace(self, args=args, kwargs=kwargs)


class TrainingStepCall(ExampleCall):
    """A call of a LightningModule's ``training_step``, for those whose ``forward`` says nothing of their training."""

    method = "training_step"

    def on(self, model: nn.Module) -> Any:
        """The loss, or whatever else the step returns."""
        return model.training_step(*self.args, **self.kwargs)  # type: ignore[operator]


def example_inputs_from_batch(model: nn.Module, batch: Any) -> tuple[ExampleCall, ...]:
    """Ways in which ``model`` may take a training batch, likeliest first.

    A tensor is the only argument. Of a sequence: the whole as one argument, its first element (inputs before targets),
    all elements. Of a mapping: the entries that ``forward`` names, the whole as one argument, its first entry. Last
    comes the ``training_step`` of a LightningModule, for modules without a ``forward`` of their own (not in a run of
    several processes, where a step may wait for the others). The result can be passed wherever an ``example_input`` is
    expected; the first call that runs and returns numbers is used.

    Args:
        model: Module whose ``forward`` is meant.
        batch: What a data loader yields.

    Returns:
        Candidate calls.

    Example:
        >>> from torch import nn
        >>> model, batch = nn.Linear(3, 4), (torch.zeros(8, 3), torch.zeros(8))
        >>> [len(call.args) for call in example_inputs_from_batch(model, batch)]
        [1, 1, 2]
    """
    has_forward = getattr(model.forward, "__module__", "") not in _WITHOUT_FORWARD
    return (*(_forward_calls(model, batch) if has_forward else ()), *_training_step_call(model, batch))


def _forward_calls(model: nn.Module, batch: Any) -> tuple[ExampleCall, ...]:
    whole = ExampleCall((batch,))
    if isinstance(batch, Mapping):
        named = _named_by_forward(model, batch)
        first = _forward_calls(model, next(iter(batch.values()))) if batch else ()
        return (*([ExampleCall((), named)] if named else []), whole, *first)
    if isinstance(batch, (tuple, list)) and batch:
        return (whole, *_forward_calls(model, batch[0]), ExampleCall(tuple(batch)))
    return (whole,)


def _training_step_call(model: nn.Module, batch: Any) -> Iterator[ExampleCall]:
    step = getattr(model, "training_step", None)
    several = torch.distributed.is_available() and torch.distributed.is_initialized()  # a step may wait for the others
    if callable(step) and not several:
        parameters = inspect.signature(step).parameters
        indices = {name: 0 for name in ("batch_idx", "dataloader_idx") if name in parameters}
        positional = [
            name for name, one in parameters.items() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
        # Lightning gives the number of the batch to a second argument of any name.
        by_place = (0,) if len(positional) > 1 and positional[1] not in indices else ()
        yield TrainingStepCall((batch, *by_place), indices)


def example_calls(model: nn.Module, example_input: Any = None) -> tuple[ExampleCall, ...]:
    """Calls to try for ``example_input`` (see ``find_neuron_groups``), likeliest first."""
    if example_input is None:
        example_input = getattr(model, "example_input_array", None)
    if example_input is None:
        return tuple(_made_up(model))
    if isinstance(example_input, ExampleCall):
        return (example_input,)
    if isinstance(example_input, Mapping):
        keyed = [ExampleCall((), example_input)] if all(isinstance(key, str) for key in example_input) else []
        return (*keyed, ExampleCall((example_input,)))
    if isinstance(example_input, (tuple, list)):
        if example_input and all(isinstance(call, ExampleCall) for call in example_input):
            return tuple(example_input)
        return (ExampleCall(tuple(example_input)), ExampleCall((example_input,)))
    return (ExampleCall((example_input,)),)


def fewer_items(call: ExampleCall) -> ExampleCall:
    """The call on the first items of its batch, if all its tensors share one leading size and can be cut there.

    Otherwise the call itself.
    """
    sizes: set[int] = set()
    call.map(lambda tensor: sizes.add(tensor.shape[0] if tensor.ndim else 0) or tensor)  # type: ignore[func-returns-value]
    if len(sizes) != 1 or next(iter(sizes)) <= _MAX_ITEMS:
        return call
    try:
        return call.map(lambda tensor: tensor[:_MAX_ITEMS])
    except Exception:  # nested, quantised and other tensors that cannot be sliced
        return call


def _named_by_forward(model: nn.Module, batch: Mapping[Any, Any]) -> dict[str, Any]:
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {key: value for key, value in batch.items() if isinstance(key, str) and (takes_all or key in parameters)}


def _made_up(model: nn.Module) -> Iterator[ExampleCall]:
    """Inputs that fit the first layer with parameters."""
    generator = torch.Generator().manual_seed(0)
    for shape, high in _expected_shapes(model):
        tokens = torch.randint(high, shape, generator=generator) if high else torch.randn(shape, generator=generator)
        yield ExampleCall((tokens,))


def _expected_shapes(model: nn.Module) -> Iterator[tuple[tuple[int, ...], int]]:
    """Shapes to try, each with the number of tokens (0: real numbers)."""
    first = next((module for module in model.modules() if any(True for _ in module.parameters(recurse=False))), None)
    if isinstance(first, nn.Embedding):
        yield (2, 8), first.num_embeddings
    elif isinstance(first, nn.Linear):
        yield from (((2, first.in_features), 0), ((2, 5, first.in_features), 0))
    elif isinstance(first, nn.RNNBase):
        yield (2, 5, first.input_size), 0
    elif isinstance(first, nn.MultiheadAttention):
        yield (2, 5, first.embed_dim), 0
    elif isinstance(first, nn.modules.conv._ConvNd):
        dimensions = first.weight.ndim - 2
        yield from (((2, first.in_channels) + (size,) * dimensions, 0) for size in _IMAGE_SIZES)


def _map(value: Any, change: Callable[[Tensor], Tensor], other: Callable[[Any], Any] = lambda value: value) -> Any:
    """Containers with every tensor changed, and with ``other`` of whatever else they hold."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(item, change, other) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_map(item, change, other) for item in value)
    if type(value) is dict:
        return {key: _map(item, change, other) for key, item in value.items()}
    if isinstance(value, Mapping) and hasattr(value, "data"):  # transformers.BatchEncoding and other UserDicts
        return {key: _map(item, change, other) for key, item in value.items()}
    return other(value)


def is_empty_batch(batch: Any) -> bool:
    """Whether a tensor of a batch has no element."""
    return any(isinstance(leaf, Tensor) and leaf.numel() == 0 for leaf in tree_leaves(batch))
