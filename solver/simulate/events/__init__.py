"""The event simulation: a schedule run step by step on requests; `simulation.simulate` is its door."""
