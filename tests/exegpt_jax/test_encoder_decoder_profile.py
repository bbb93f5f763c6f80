"""Profiles of T5: layers of encoder and decoder told apart, shorter models made of the model's own arrays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from exegpt_jax.profiler import measure
from exegpt_jax.profiler.grid import Limits, Point, axes_of, points_of, prompt_share, short_specs
from exegpt_jax.profiler.measure import Wishes, profile_model
from exegpt_jax.profiler.probe import Sample, shorten
from exegpt_jax.profiler.tables import Overheads, tables_of
from solver.facts.model_config import parse_config
from solver.facts.model_spec import LayerKind
from solver.facts.profile_file import read_profile, write_profile
from tests.exegpt_jax.test_profiler import SMALLEST, zeros
from tests.exegpt_jax.tiny_models import CONFIGS, spec_of, write_model

ENCODER, DECODER = LayerKind("encoder"), LayerKind("cross")


@pytest.mark.parametrize("stacks", [(3, 2), (2, 2), (3, 1), (1, 1)])
def test_split_finds_the_layers_that_times_were_made_of(stacks: tuple[int, int]) -> None:
    encoders, decoders = stacks
    spec = parse_config({**CONFIGS["t5"], "num_layers": encoders, "num_decoder_layers": decoders})
    limits = Limits(max_rows=4, cache_tokens=60, max_prompt_tokens=32)
    points, axes, share = points_of(spec, 1, limits), axes_of(limits), prompt_share(spec)
    assert 0 < share < 0.5
    (short,) = short_specs(spec)
    assert short.encoder_layers * 2 == short.num_layers
    assert short.layers != spec.layers

    def seconds(point: Point) -> float:
        own = spec if point.cut == "whole" else short
        behind = own.num_layers - own.encoder_layers
        if point.call == "decode":
            return 1e-4 * point.rows + behind * 1e-5 * point.rows * point.tokens
        return 1e-4 * point.rows + (own.encoder_layers + share * behind) * 1e-5 * point.rows * point.tokens

    samples = {p.key: [Sample(seconds(p), seconds(p), 1, 0.0)] for p in points}
    layers, end = tables_of(spec, axes, points, samples, Overheads(0.0, 0.0))
    assert [times.kind for times in layers] == [ENCODER, DECODER]
    prompts, contexts = np.array(axes.encode_tokens), np.array(axes.contexts)
    np.testing.assert_allclose(layers[0].encode.at(4.0, prompts), 1e-5 * 4 * prompts, rtol=1e-5)
    np.testing.assert_allclose(layers[1].encode.at(4.0, prompts), share * 1e-5 * 4 * prompts, rtol=1e-5)
    np.testing.assert_allclose(layers[1].decode.at(4.0, contexts), 1e-5 * 4 * contexts, rtol=1e-5)
    assert not layers[0].decode.seconds.any()
    np.testing.assert_allclose(end.head.seconds[:, 0], 1e-4 * np.array(axes.decode_rows), rtol=1e-6)


def test_short_models_are_made_of_the_models_own_arrays() -> None:
    spec = spec_of("t5")
    stage = zeros(spec)
    (short,) = short_specs(spec)
    assert (short.encoder_layers, short.num_layers) == (1, 2)
    held = {leaf.path: array for leaf, array in zip(stage.blueprint.leaves, stage.params, strict=True)}
    cut = shorten(stage, short)
    found = {leaf.path: array for leaf, array in zip(cut.blueprint.leaves, cut.params, strict=True)}
    assert found["blocks.0.mlp.up.weight"] is held["blocks.0.mlp.up.weight"]
    assert found["blocks.1.cross.k.weight"] is held["blocks.2.cross.k.weight"]
    assert found["decoder_distances"] is held["decoder_distances"]


@pytest.mark.full
def test_real_programs_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that is written and read again; ends and layers add up to what was measured."""
    monkeypatch.setattr(measure, "runner_gap_s", lambda *_: 1e-4)
    monkeypatch.setattr(measure, "stage_dispatch_s", lambda *_: 1e-4)
    write_model("t5-v1.1", tmp_path / "model")
    found = profile_model(tmp_path / "model", Wishes(SMALLEST, repeats=1), tmp_path / "samples.jsonl")
    write_profile(found.profile, tmp_path / "profile.json")
    profile = read_profile(tmp_path / "profile.json")
    assert (found.points, found.points_measured) == (4, 4)
    encoder, decoder = (profile.layer(1, kind) for kind in (ENCODER, DECODER))
    assert all((table.seconds > 0).all() for table in (encoder.encode, decoder.encode, decoder.decode))
    assert not encoder.decode.seconds.any()
    busy = dataclasses.replace(encoder, decode=decoder.decode)
    with pytest.raises(ValueError, match=r"layers\[0\]\.decode\.seconds"):
        write_profile(dataclasses.replace(profile, layers=(busy, decoder)), tmp_path / "other.json")
