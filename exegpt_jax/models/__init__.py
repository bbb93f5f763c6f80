"""Models in Flax NNX: one definition for six decoder-only families, and one for T5."""
