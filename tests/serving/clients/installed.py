"""A foreign client's side of `test_environment`: which packages it has, and which of this project's it can see."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json

packages = {
    each.metadata["Name"].lower().replace("_", "-"): each.version for each in importlib.metadata.distributions()
}
ours = [name for name in ("serving", "exegpt_jax", "solver", "jax") if importlib.util.find_spec(name)]
print(json.dumps({"packages": packages, "ours": ours}))
