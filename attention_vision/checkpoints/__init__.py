"""Released weights by their keys, whole or not at all: see `load_official`."""

from attention_vision.checkpoints.load import load_backbone, load_official, start_from

__all__ = ["load_backbone", "load_official", "start_from"]
