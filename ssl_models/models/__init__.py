"""Backbones: one transformer, residual networks, patch encoders, and the presets that size them."""
