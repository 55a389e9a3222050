"""The numbers of a parsed config against the ranges that its classes declare."""

import typing
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from datetime import timedelta
from typing import Annotated, Any

from jsonargparse import ArgumentParser, Namespace

from attention_vision.config.messages import classes_in, import_class
from attention_vision.errors import ConfigError
from attention_vision.ranges import (
    Count,
    Finite,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    Probability,
    Range,
    Share,
    refusal,
)

UNLIMITED = Annotated[int, Range(1, also=(-1,))]
BATCHES = NonNegativeInt | Probability
TRAINED_BATCHES = Count | Share

# The classes of others that a config names declare no ranges: where their module begins so, these
# arguments have them.
OTHERS: dict[str, dict[str, Any]] = {
    "lightning.pytorch.trainer": {
        "num_nodes": Count,
        "fast_dev_run": NonNegativeInt | bool,
        "max_epochs": UNLIMITED,
        "min_epochs": NonNegativeInt,
        "max_steps": UNLIMITED,
        "min_steps": NonNegativeInt,
        "limit_train_batches": TRAINED_BATCHES,
        "limit_val_batches": BATCHES,
        "limit_test_batches": BATCHES,
        "limit_predict_batches": BATCHES,
        "overfit_batches": BATCHES,
        "val_check_interval": TRAINED_BATCHES | str | timedelta,
        "check_val_every_n_epoch": Count,
        "num_sanity_val_steps": Annotated[int, Range(-1)],
        "log_every_n_steps": NonNegativeInt,
        "accumulate_grad_batches": Count,
        "gradient_clip_val": NonNegative,
        "reload_dataloaders_every_n_epochs": NonNegativeInt,
    },
    "lightning.pytorch": {
        "min_delta": NonNegative,
        "patience": NonNegativeInt,
        "factor": Annotated[float, Range(above=0, below=1)],
        "cooldown": NonNegativeInt,
        "threshold": NonNegative,
        "min_lr": NonNegative | list[NonNegative],
        "eps": NonNegative,
    },
    "torch.optim": {
        "lr": Positive,
        "weight_decay": NonNegative,
        "momentum": Fraction,
        "dampening": Finite,
        "betas": tuple[Fraction, Fraction],
        "alpha": Probability,
        "rho": Probability,
        "eps": NonNegative,
        "lr_decay": NonNegative,
        "momentum_decay": NonNegative,
        "gamma": Positive,
        "step_size": Count,
        "milestones": list[NonNegativeInt],
        "T_max": Count,
        "T_0": Count,
        "T_mult": Count,
        "eta_min": NonNegative,
        "total_iters": NonNegativeInt,
        "start_factor": Share,
        "end_factor": Probability,
        "max_lr": Positive,
        "base_lr": NonNegative,
        "power": Positive,
    },
    "torch.nn": {
        "p": Probability,
        "eps": NonNegative,
        "momentum": Probability,
        "label_smoothing": Probability,
        "num_groups": Count,
    },
}


def check_ranges(parser: ArgumentParser, config: Namespace) -> None:
    """Refuse the first number that is outside of the range that its class declares.

    Raises:
        ConfigError: names the key as a user writes it, the value and the range.
    """
    trainer = OTHERS["lightning.pytorch.trainer"]
    for action in parser._actions:
        key, hint = action.dest, getattr(action, "_typehint", None)
        if key.startswith("trainer."):
            hint = trainer.get(key.removeprefix("trainer."), hint)
        if hint is not None and (line := out_of_range(key, config.get(key), hint)):
            raise ConfigError(line)


def out_of_range(key: str, value: object, hint: object) -> str | None:
    """One line on the first number that is not in its range, at a key or below it."""
    if isinstance(value, list | tuple) and any(isinstance(one, Namespace) for one in value):
        lines = (out_of_range(f"{key}[{number}]", one, hint) for number, one in enumerate(value))
    elif not isinstance(value, Namespace):
        return refusal(key, value, hint)
    else:
        owner, given = value.get("class_path"), value.get("init_args")
        if isinstance(owner, str):
            hints, given = declared([import_class(owner)]), given or Namespace()
        else:
            hints, given = declared(filter(is_dataclass, classes_in(hint))), value
        lines = (
            f"{key}.{name} is null: it needs a number"
            if one is None and accepts_numbers_alone(hints.get(name))
            else out_of_range(f"{key}.{name}", one, hints.get(name))
            for name, one in vars(given).items()
        )
    return next(filter(None, lines), None)


def accepts_numbers_alone(hint: object) -> bool:
    """Whether an argument is a number with a range, and never null."""
    return typing.get_origin(hint) is Annotated


def declared(owners: Iterable[Any]) -> Mapping[str, Any]:
    """Argument -> annotation of the constructors of classes, those of their bases included."""
    hints: dict[str, Any] = {}
    for owner in owners:
        for base in reversed(owner.__mro__ if isinstance(owner, type) else [owner]):
            module = base.__module__
            others = [table for name, table in OTHERS.items() if module.startswith(name)]
            try:
                init = vars(base).get("__init__") if isinstance(base, type) else base
                hints |= typing.get_type_hints(init, include_extras=True) if init else {}
            except Exception:  # names of a stranger's annotations that exist for type checkers only
                continue
            for table in reversed(others):
                hints |= {name: hint for name, hint in table.items() if name in hints}
    return hints
