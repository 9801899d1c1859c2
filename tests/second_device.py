"""A device of torch without float64, made of the CPU's memory: what lies on it says so, and mixes with nothing else.

``torch.device("single")`` once :func:`register` was called, for the rest of the process.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "single"
_HERE = "LIGHTNING_TOPO_ON_A_DEVICE_WITHOUT_DOUBLE"  # set in the process of such a test
_SET_UP = "_setup_privateuseone_for_python_backend"  # which torch 2.4 does not have
aten = torch.ops.aten
# What may take tensors of two devices: copies, and indices from the host. Lists may hold them too ("_foreach").
_MIXING = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default}


def register() -> torch.device:
    getattr(backend_registration, _SET_UP)(NAME)
    return torch.device(NAME, 0)


class OnDevice(Tensor):
    """A tensor that says that it lies on the device; its numbers are in ``inner``."""

    @staticmethod
    def __new__(cls, inner):
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"{NAME} has no {inner.dtype}")
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):  # which torch has for its own classes only
        return self.inner.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return carried_out(func, args, dict(kwargs or {}))


class Factories(TorchDispatchMode):
    """Makes tensors on the device where nothing but a device is given."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return carried_out(func, args, dict(kwargs or {}))


def carried_out(func, args, kwargs):
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [leaf for leaf in given if isinstance(leaf, OnDevice)]
    strangers = [leaf for leaf in given if not isinstance(leaf, OnDevice) and leaf.ndim > 0]
    if here and strangers and func not in _MIXING and not func.__name__.startswith("_foreach"):
        raise RuntimeError(f"{func} expected all tensors on one device, got {NAME} and {strangers[0].device}")
    target = kwargs.get("device")
    result_is_here = bool(here) if target is None else torch.device(target).type == NAME
    if target is not None and result_is_here:
        kwargs["device"] = torch.device("cpu")
    plain_args, plain_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.inner, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not result_is_here:
        return result
    known = {id(leaf.inner): leaf for leaf in here}  # of what is changed in place, the same object
    return tree_map_only(Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else OnDevice(tensor), result)


def on_a_device_without_double(test):
    """For a test of the device, which gets a fresh process: a device is registered for good, before any training."""

    def run(request):
        if _HERE in os.environ:
            with Factories():
                test(register())
            return
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", request.node.nodeid]
        ended = subprocess.run(
            command,
            cwd=request.config.rootpath,
            env=environment | {_HERE: "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    known = hasattr(backend_registration, _SET_UP)
    return pytest.mark.skipif(not known, reason="this torch has no devices that are written in Python")(run)
