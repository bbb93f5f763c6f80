"""Rotary position settings of a `config.json`, in both dialects.

transformers 4 writes `rope_theta` beside a `rope_scaling` object (null where nothing is scaled, its kind under `type`
or `rope_type`); transformers 5 writes one `rope_parameters` object with everything inside.
"""

from __future__ import annotations

import math

from solver.facts.config_fields import Fields
from solver.facts.model_spec import Rope

SCALINGS = {"default": "default", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}


def parse_rope(fields: Fields, max_positions: int) -> Rope:
    """Raises UnsupportedModel where a rope type, or a variant of one, is not done here."""
    section = fields.section("rope_parameters") or fields.section("rope_scaling") or Fields({}, "rope_parameters.")
    nested = [name for name in section.values if name in ("full_attention", "sliding_attention")]
    if nested:
        raise section.fail(nested[0], section.values[nested[0]], "is not supported: one rope for all layers only")
    for holder in (fields, section):
        if holder.number("partial_rotary_factor", 1.0) != 1.0:
            raise holder.fail(
                "partial_rotary_factor", holder.get("partial_rotary_factor"), "is not supported; only 1 is"
            )
    section.refuse(["mrope_section", "mrope_interleaved"])
    base = section.number("rope_theta", fields.number("rope_theta", 10_000.0, low=1.0), low=1.0)
    scaling = section.choice("rope_type", "type", default="default", choices=SCALINGS)
    if scaling == "default":
        return Rope(base=base)
    factor = section.number("factor")
    if factor < 1.0:
        raise section.fail("factor", factor, "is below 1; positions can only be stretched")
    if scaling == "linear":
        return Rope(base=base, scaling="linear", factor=factor)
    # A value beside the section wins over one inside it, as it does in transformers.
    original = fields.integer("original_max_position_embeddings", default=0) or section.integer(
        "original_max_position_embeddings", default=max_positions
    )
    if scaling == "llama3":
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if high <= low:
            raise section.fail("high_freq_factor", high, f"must exceed low_freq_factor={low:g}")
        return Rope(base, "llama3", factor, low_freq_factor=low, high_freq_factor=high, original_positions=original)
    if not section.flag("truncate", True):
        raise section.fail("truncate", False, "is not supported; only true is")
    return Rope(
        base,
        "yarn",
        factor,
        original_positions=original,
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        attention_factor=_yarn_attention_factor(section, factor),
    )


def _yarn_attention_factor(section: Fields, factor: float) -> float:
    """The factor on cosine and sine as the config fixes it; 0 where it leaves the default."""
    if section.get("attention_factor") is not None:
        return section.number("attention_factor")
    if section.get("mscale") and section.get("mscale_all_dim"):
        above, below = (0.1 * section.number(name) * math.log(factor) + 1.0 for name in ("mscale", "mscale_all_dim"))
        return above / below
    return 0.0
