"""The Open Inference Protocol; its names and field numbers are Triton's."""
