"""One run: from a config to a run folder, and back by `load_run`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_vision.runs.load import load_run

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    """Imports `load_run` when it is asked for: the table of tasks must not wait for torch."""
    if name == "load_run":
        from attention_vision.runs.load import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
