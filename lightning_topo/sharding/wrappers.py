"""Modules that wrap others: their names, what is inside them, and copies without them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

# Children under which wrappers (DDP, torch.compile, FSDP1, activation checkpointing) keep the module that they wrap.
WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def canonical_name(name: str) -> str:
    """Dotted name without the parts that wrappers put in."""
    return ".".join(key for key in name.split(".") if key and key not in WRAPPED[1:])


def unwrapped(module: Any) -> Any:
    """The module without the wrappers of torch.compile and FSDP1; None stays None."""
    for wrapper in ("_orig_mod", "_fsdp_wrapped_module"):
        while module is not None and wrapper in module._modules:
            module = module._modules[wrapper]
    return module


def is_spread(parameter: nn.Parameter) -> bool:
    """Whether this process holds a part of the parameter at most."""
    return hasattr(parameter, "placements") or getattr(parameter, "_fsdp_flattened", False)


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP, tensor parallelism or DeepSpeed has divided the module's own parameters among processes."""
    own = module.parameters(recurse=False)
    divided = any(is_spread(parameter) or hasattr(parameter, "ds_id") for parameter in own)
    return divided or _is_fsdp1(module) or _is_fsdp2(module)


def is_engine(module: nn.Module) -> bool:
    """Whether the module is DeepSpeed's engine, whose optimizer keeps the parameters joined, in every stage."""
    return any(base.__name__ == "DeepSpeedEngine" for base in type(module).__mro__)


def measured_model(trainer: Any, pl_module: Any) -> Any:
    """The module through which the neurons are read, its parameters sharded as the optimizer sees them."""
    wrapped = trainer.strategy.model
    model = wrapped if _is_fsdp1(wrapped) else pl_module
    for module in model.modules():
        # A forward pass without a backward pass leaves parameters of FSDP2 together, in its working precision.
        if _is_fsdp2(module):
            module.reshard()
    return model


def deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """As ``copy.deepcopy``, also of what FSDP has taken hold of, and which refuses to be copied.

    Nothing comes in the place of a sharded parameter, whose name stays.
    """
    for parameter in model.parameters():
        if is_spread(parameter):
            memo[id(parameter)] = nn.Parameter(torch.empty(0, dtype=parameter.dtype), requires_grad=False)
    for module in model.modules():
        for value in vars(module).values():
            if type(value).__name__ == "DeviceMesh":  # which cannot be copied, and need not be
                memo[id(value)] = value
    held = [module for module in model.modules() if _is_fsdp2(module) or _is_fsdp1(module)]
    for module in held:  # all of them before any is filled: they may refer to each other
        memo[id(module)] = object.__new__(_plain_class(module)) if _is_fsdp2(module) else nn.Module()
    for module in held:
        if _is_fsdp2(module):
            attributes: Any = module.__reduce_ex__(2)[2]
            state = {key: value for key, value in attributes.items() if not key.startswith("__composable_api_state")}
            memo[id(module)].__setstate__(copy.deepcopy(state, memo))
        else:
            memo[id(module)].add_module("_fsdp_wrapped_module", copy.deepcopy(module._fsdp_wrapped_module, memo))
    return copy.deepcopy(model, memo)


def _is_fsdp1(module: nn.Module) -> bool:
    return "_fsdp_wrapped_module" in module._modules


def _is_fsdp2(module: nn.Module) -> bool:
    """Whether ``fully_shard`` has taken hold of the module, for which it makes a class with one more base."""
    return any(base.__name__ == "FSDPModule" for base in type(module).__bases__)


def _plain_class(module: nn.Module) -> type:
    """The class of which ``fully_shard`` has made one of its own."""
    return next(base for base in type(module).__bases__ if base.__name__ != "FSDPModule")
