"""Official weights, recognized by their keys and loaded completely or not at all."""

from attention_vision.checkpoints.load import load_backbone, load_official, start_from

__all__ = ["load_backbone", "load_official", "start_from"]
