"""Attention in vision: classification, detection and generation on one attention package.

This file imports nothing, so that `attention-vision --help` answers at once.
"""

__version__ = "0.2.0"
