"""Where layers live: the placement as whole-number patterns, CP-SAT, a second solver, and the layout on devices."""
