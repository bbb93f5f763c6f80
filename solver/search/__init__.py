"""XScheduler: `planner` asks the search of each policy; `placement` (OR-Tools), `proof` (branch and bound) serve it."""
