"""Descriptions of tiny models of llama.cpp's architectures: spec.py tells how one is written, each other module has a family."""

from archs import gemma, hybrid, latent, looped, plain, windowed  # noqa: F401 (they fill the table)
