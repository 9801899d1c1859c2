"""One random training run: everything about it follows from a number."""

from __future__ import annotations

import random
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from .compare import outcome
from .data import FORMS, SOURCES, draw_loader, parts
from .extras import EXTRAS, OF_ONE_OPTIMIZER, Habits
from .extras import callbacks as extra_callbacks
from .models import MODELS, draw_network
from .optimizers import OPTIMIZERS, SCHEDULES, draw_optimizers, schedule

_WEIGHTS = {"bfloat16": torch.bfloat16, "half": torch.float16, "double": torch.float64}


class Module(pl.LightningModule):
    """A drawn network with its optimizers; it remembers its batches and the rates that it saw."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw
        self.automatic_optimization = not draw.several
        self.net, self.takes = draw_network(draw.model, random.Random(f"{draw.seed} model"), draw.frozen)
        if draw.weights in _WEIGHTS:
            self.net.to(_WEIGHTS[draw.weights])
        self.seen: list[float] = []
        self.habits = Habits(self, draw.extra)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            x = x.to(next(self.net.parameters()).dtype)
        return self.net(self.habits.on_input(x))

    def loss(self, batch: Any) -> Tensor:
        x, y = parts(batch)
        out = self(x)
        return nn.functional.cross_entropy(out if out.dtype == torch.float64 else out.float(), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(float(parts(batch)[0].double().sum()))
        if self.automatic_optimization:
            loss = self.loss(batch)
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            return self.habits.on_loss(loss, len(self.seen))
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.zero_grad()
            loss = self.habits.on_loss(self.loss(batch), len(self.seen))
            if loss is None:
                continue
            self.manual_backward(loss["loss"] if isinstance(loss, dict) else loss)
            optimizer.step()
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers] if schedulers else []:
            scheduler.step()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        draw = self.draw
        made = draw_optimizers(
            draw.optimizer, self.net, draw.lr, draw.groups, draw.several, random.Random(f"{draw.seed} optimizer")
        )
        plans = [schedule("none" if draw.several and draw.schedule == "plateau" else draw.schedule, o) for o in made]
        if len(made) == 1:
            return made[0] if plans[0] is None else {"optimizer": made[0], "lr_scheduler": plans[0]}
        return made, [plan for plan in plans if plan is not None]


@dataclass(frozen=True)
class Draw:
    """What a number stands for.

    Args:
        seed: The number.
        check: What is to be found out: ``monitors``, ``finder``, ``clipping`` or ``control``.
    """

    seed: int
    check: str
    model: str = field(init=False)
    weights: str = field(init=False)
    frozen: bool = field(init=False)
    form: str = field(init=False)
    source: str = field(init=False)
    scale: float = field(init=False)
    optimizer: str = field(init=False)
    groups: bool = field(init=False)
    several: bool = field(init=False)
    lr: float = field(init=False)
    schedule: str = field(init=False)
    extra: str = field(init=False)
    flags: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        r = random.Random(f"{self.seed} {self.check}")
        several = r.random() < 0.2
        weights = r.choice(("single",) * 8 + tuple(_WEIGHTS))
        kinds = [kind for kind in OPTIMIZERS if kind != "LBFGS" or (self.check == "monitors" and not several)]
        largest = 6.0 if self.check == "clipping" else 2.0 if self.check == "control" else -0.5
        drawn = {
            "model": r.choice(tuple(MODELS)),
            "weights": weights,
            "frozen": r.random() < 0.15,
            "form": r.choice(FORMS),
            "source": r.choice(SOURCES),
            "scale": r.choice((1.0, 1.0, 1.0, 1e-2, 30.0)),
            "optimizer": r.choice(kinds),
            "groups": r.random() < 0.3,
            "several": several,
            "lr": 10 ** r.uniform(-4, largest),
            "schedule": r.choice(SCHEDULES),
            "extra": r.choice([extra for extra in EXTRAS if not several or extra not in OF_ONE_OPTIMIZER]),
        }
        for name, value in drawn.items():
            object.__setattr__(self, name, value)
        if drawn["extra"] == "SWA" and "stream" in str(drawn["source"]):  # which Lightning does not do
            object.__setattr__(self, "source", "shuffled")
        object.__setattr__(self, "flags", self._flags(r, several, weights))

    def _flags(self, r: random.Random, several: bool, weights: str) -> dict[str, Any]:
        flags: dict[str, Any] = {"log_every_n_steps": r.choice((1, 2, 3, 50)), "num_sanity_val_steps": r.choice((0, 2))}
        if weights == "single":
            flags["precision"] = r.choice(("32-true",) * 5 + ("bf16-mixed", "bf16-true", "64-true", "16-true"))
        if not several and self.extra != "scheduled accumulation":
            flags |= r.choice(({}, {}, {"accumulate_grad_batches": 2}, {"accumulate_grad_batches": 3}))
        if not several:
            flags |= r.choice(
                ({}, {}, {"gradient_clip_val": 0.1}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"})
            )
        flags |= r.choice(({"max_epochs": 1}, {"max_epochs": 3}, {"max_steps": 7, "max_epochs": 9}))
        flags |= r.choice(({}, {}, {"val_check_interval": 1}, {"check_val_every_n_epoch": 2}))
        flags |= r.choice(({}, {}, {"limit_train_batches": 2}, {"limit_train_batches": 0.5 if self._sized else 3}))
        flags |= r.choice(({}, {}, {"deterministic": True}, {"detect_anomaly": self.check == "monitors"}))
        return flags

    @property
    def _sized(self) -> bool:
        return "stream" not in self.source

    def module(self) -> Module:
        """The module, with the same weights each time."""
        torch.manual_seed(self.seed)
        return Module(self)

    def loader(self, train: bool = True) -> Any:
        """A new loader of the same examples."""
        _, takes = draw_network(self.model, random.Random(f"{self.seed} model"), False)
        return draw_loader(self.seed, takes, self.form, self.source, self.scale, train)

    def trainer(self, ours: Any = ()) -> pl.Trainer:
        """A quiet Trainer."""
        settings = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tempfile.gettempdir(),
        }
        return pl.Trainer(callbacks=[*extra_callbacks(self.extra), *ours], **settings, **self.flags)

    def fit(self, callbacks: Any = (), prepare: Any = None) -> Run:
        """Train, and keep what there is to compare.

        Args:
            callbacks: Those of the Trainer.
            prepare: Called with the Trainer, the module and the loader before the fit.
        """
        module, train, validation = self.module(), self.loader(), self.loader(train=False)
        pl.seed_everything(self.seed, verbose=False)
        deterministic = torch.are_deterministic_algorithms_enabled()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                trainer = self.trainer(callbacks)
                if prepare is not None:
                    prepare(trainer, module, train)
                trainer.fit(module, train, validation)
            finally:
                torch.use_deterministic_algorithms(deterministic)
        return Run(module, trainer, [str(one.message) for one in caught], outcome(module, trainer))

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in asdict(self).items())


@dataclass(frozen=True, eq=False)
class Run:
    """A run that has ended."""

    module: Module
    trainer: pl.Trainer
    warned: list[str]
    outcome: dict[str, Any]
