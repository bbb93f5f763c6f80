"""Decoder-only models in Flax NNX, one definition for six families."""
