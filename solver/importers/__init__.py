"""Published tables of GPU and TPU timings, read with their unit traps and composed into Profiles."""
