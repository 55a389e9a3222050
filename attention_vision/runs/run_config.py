"""The config of a run: RUN/config.yaml, and its record in every checkpoint."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer

from attention_vision import __version__
from attention_vision.config.parser import ArgumentParser
from attention_vision.errors import ConfigError
from attention_vision.runs.resume import RECORD, differences
from attention_vision.yaml_json import read_yaml, write_atomically


class RunConfig(Callback):
    """Writes RUN/config.yaml before the first step, and keeps it in every checkpoint.

    A start or a resume that fails before its first step thus leaves the folder as it is. A config
    that differs from the one before moves that to config.1.yaml, config.2.yaml and so on. The
    loggers get the config as well.

    A checkpoint has under `RECORD`: `config`, the `version` of this package, the `flags` of the
    command and the number of `processes`.

    Args:
        parser: that parsed the config.
        config: of the command.
        flags: of the command, see `resume.flags_of_run`.
    """

    def __init__(self, parser: ArgumentParser, config: Namespace, flags: Sequence[str]):
        self.parser, self.config, self.flags = parser, config, list(flags)
        self._plain: dict[str, Any] | None = None
        self.has_begun = False  # a step

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self.has_begun:
            return
        self.has_begun = True
        if not trainer.is_global_zero:
            return
        write_config(Path(self.config.run), self._text(module))
        for logger in trainer.loggers:
            logger.log_hyperparams(self._content(module))

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[RECORD] = {
            "version": __version__,
            "config": self._content(module),
            "flags": self.flags,
            "processes": trainer.world_size,
        }

    def _content(self, module: LightningModule) -> dict[str, Any]:
        if self._plain is None:
            self._plain = plain_config(self.parser, self.config)
            # The dump drops what is linked into a model that is chosen by class_path.
            arguments = self._plain["model"].get("init_args") or self._plain["model"]
            for name, network in module.named_children():
                if name in arguments and hasattr(network, "num_classes"):
                    arguments[name]["init_args"].setdefault("num_classes", network.num_classes)
        return self._plain

    def _text(self, module: LightningModule) -> str:
        header = [f"# {line}" for line in self.parser.dump_header or ()]
        return "\n".join([*header, yaml.safe_dump(self._content(module), sort_keys=False)])


def plain_config(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """A config as it is written: all arguments of the run, without those of one call."""
    config = config.clone()
    for key in ("config", "ckpt_path"):
        config.pop(key, None)
    return yaml.safe_load(parser.dump(config, skip_unset=False, skip_link_targets=False))


def write_config(run: Path, text: str) -> None:
    """Write RUN/config.yaml unless it says the same; another moves to the first free config.N.yaml.

    Raises:
        OSError: it cannot be written.
    """
    file = run / "config.yaml"
    if file.is_file():
        with suppress(ConfigError):  # it is damaged
            if not differences(read_yaml(file), yaml.safe_load(text)):
                return
        number = 1
        while (kept := run / f"config.{number}.yaml").exists():
            number += 1
        write_atomically(kept, file.read_text(errors="replace"))
    write_atomically(file, text)
