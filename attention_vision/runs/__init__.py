"""One run: from a config to a run folder, and back by `load_run`."""

from attention_vision.runs.load import load_run

__all__ = ["load_run"]
