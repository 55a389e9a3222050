"""One run: from a config to a run folder, and back by `load_run` and `load_data`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention_vision.runs.load import load_data, load_run

__all__ = ["load_data", "load_run"]


def __getattr__(name: str) -> Any:
    """Imports them when they are asked for: the table of tasks must not wait for torch."""
    if name in __all__:
        from attention_vision.runs import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
