"""The learning-rate finder from the command line, for projects that are run by LightningCLI."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_topo.finder.lr_find import topological_lr_find
from lightning_topo.finder.options import SearchOptions
from lightning_topo.finder.result import TopologicalLRResult

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_DESCRIPTION = """Find the critical learning rate of a LightningCLI project, and the one to train at.

The configuration is that of its fit; further options are handed on to LightningCLI, as --trainer.accelerator=cpu.
Nothing is trained. Prints what was found, and writes it to lr_find.json and lr_find.png."""


def add_find_lr(subparsers: Any) -> None:
    """Add the subcommand ``find-lr`` to a parser's subparsers.

    Args:
        subparsers: What ``argparse.ArgumentParser.add_subparsers`` gave.
    """
    parser = subparsers.add_parser(
        "find-lr",
        help="find the learning rate to train a LightningCLI project at",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    usual = SearchOptions()
    parser.add_argument("--config", "-c", action="append", required=True, help="configuration; may be given repeatedly")
    parser.add_argument("--model-class", help="import path of the model, where the configuration names none")
    parser.add_argument("--data-class", help="import path of the data module, where the configuration names none")
    parser.add_argument("--output", type=Path, default=Path(), help="folder to write to (default: the present one)")
    parser.add_argument("--safety", type=_share, default=usual.safety, help="auto, or a share of the critical rate")
    for name in ("min_lr", "max_lr", "tolerance"):
        parser.add_argument(_flag(name), type=float, default=getattr(usual, name))
    for name in ("hold_steps", "trial_steps", "orders"):
        parser.add_argument(_flag(name), type=int, default=getattr(usual, name))
    parser.add_argument("--groups", nargs="+", help="globs on the names of neuron groups")
    parser.add_argument("--no-schedule", dest="schedule", action="store_false", help="hold the rate constant in trials")
    parser.set_defaults(run=find_lr)


def find_lr(options: argparse.Namespace, rest: Sequence[str]) -> TopologicalLRResult:
    """Search with the parsed options; print, and write JSON and a picture.

    Args:
        options: Those of ``add_find_lr``.
        rest: Those of LightningCLI.

    Returns:
        What was found.

    Raises:
        ValueError: When an option is out of range, or nothing could be searched.
        ImportError: When jsonargparse or a class cannot be imported.
    """
    names = ("min_lr", "max_lr", "hold_steps", "tolerance", "safety", "groups", "orders", "trial_steps", "schedule")
    wanted = {name: getattr(options, name) for name in names}
    SearchOptions(**wanted)  # before anything is built
    model, data = (_imported(path) for path in (options.model_class, options.data_class))
    arguments = ["fit", *(f"--config={path}" for path in options.config), *rest]
    result = _search(_package(model, options.config), model, data, arguments, wanted)
    if result is None:
        raise ValueError("expected a run that can be searched, got fast_dev_run; leave it out")
    options.output.mkdir(parents=True, exist_ok=True)
    values = {**result.to_dict(), "suggestion": result.suggestion()}
    (options.output / "lr_find.json").write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    result.plot().figure.savefig(options.output / "lr_find.png")
    print(result)
    print(f"Written: {options.output / 'lr_find.json'}, {options.output / 'lr_find.png'}")
    return result


def _search(package: str, model: Any, data: Any, arguments: list[str], wanted: dict[str, Any]) -> Any:
    try:
        cli = import_module(f"{package}.cli")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"LightningCLI cannot be imported ({error}); do: pip install jsonargparse[signatures]"
        ) from error
    found: list[Any] = []

    base: Any = cli.LightningCLI

    class SearchInsteadOfFit(base):
        """Builds what ``fit`` would train, and searches."""

        def _run_subcommand(self, subcommand: str) -> None:
            found.append(
                topological_lr_find(self.trainer, self.model, None, self.datamodule, update_attr=False, **wanted)
            )

    kinds = {"subclass_mode_model": model is None, "subclass_mode_data": data is None}
    own, sys.argv = sys.argv, sys.argv[:1]  # or LightningCLI warns that it has been given both
    try:
        SearchInsteadOfFit(model, data, save_config_callback=None, args=arguments, **kinds)
    finally:
        sys.argv = own
    return found[0]


def _imported(path: str | None) -> Any:
    if path is None:
        return None
    module, _, name = path.rpartition(".")
    if not module:
        raise ImportError(f"expected an import path such as package.module.Class, got {path!r}")
    return getattr(import_module(module), name)


def _package(model: Any, configs: Sequence[str]) -> str:
    """The package whose LightningModule the model is, as far as that can be told; else one that is installed."""
    if model is None:
        with suppress(Exception):  # what is wrong with a configuration LightningCLI tells better
            model = _imported(_class_path(configs))
    for cls in getattr(model, "__mro__", ()):
        for package in _PACKAGES:
            if cls.__name__ == "LightningModule" and cls.__module__.startswith(f"{package}."):
                return package
    for package in _PACKAGES:
        with suppress(ImportError):
            import_module(package)
            return package
    raise ImportError("expected lightning or pytorch_lightning to be installed, got neither")


def _class_path(configs: Sequence[str]) -> str | None:
    load = import_module("yaml").safe_load
    values = [load(Path(path).read_text()).get("model") for path in configs]
    return next((value["class_path"] for value in values if isinstance(value, dict) and "class_path" in value), None)


def _share(text: str) -> Any:
    return text if text == "auto" else float(text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
