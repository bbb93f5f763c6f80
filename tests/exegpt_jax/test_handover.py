"""Payloads between unequal meshes: not a byte changes, nothing is waited for, nothing compiles on the way."""

from __future__ import annotations

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from exegpt_jax.engine.api import EngineError, Sampling
from exegpt_jax.engine.cache import CacheSpec
from exegpt_jax.engine.compiling import forbid_compilations
from exegpt_jax.engine.results import ready
from exegpt_jax.engine.sampling import Counts, pack
from exegpt_jax.engine.state import NO_COUNTS, NO_ROWS, Payload, Rows
from exegpt_jax.engine.transfer import handover
from exegpt_jax.engine.transfer.handover import HandOver, checksum
from exegpt_jax.engine.transfer.head_routes import head_routes
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Stage, blueprint
from solver.facts.model_spec import ModelSpec
from solver.plan.schedule import StageSpec
from tests.exegpt_jax.tiny_models import spec_of

ROWS, LENGTH = 3, 16


def stage_on(spec: ModelSpec, first: int, tensor: int, layers: tuple[int, int] | None = None) -> Stage:
    """A stage without weights, which a hand-over does not read."""
    devices = jax.devices()[first : first + tensor]
    stage = StageSpec("both", layers or (0, spec.num_layers), tuple(device.id for device in devices), tensor)
    return Stage(blueprint(spec, stage, "float32", make_mesh(devices)), ())


def said(spec: ModelSpec, seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Random keys and values of real heads, counts over the real vocabulary, and rows."""
    rng = np.random.default_rng(seed)
    shapes = (ROWS, spec.kv_heads, spec.head_dim, LENGTH), (ROWS, spec.kv_heads, LENGTH, spec.head_dim)
    cache = [rng.normal(size=shape).astype(np.float32) for _ in range(spec.num_layers) for shape in shapes]
    counts = [
        rng.integers(0, 9, (ROWS, spec.vocab_size)).astype(np.int32),
        rng.random((ROWS, spec.vocab_size)) < 0.5,
    ]
    wanted = pack([Sampling(9, seed=seed, stop_ids=(1, 2), temperature=0.5)] * ROWS, ROWS)
    rows = [rng.integers(0, 50, ROWS).astype(np.int32) for _ in range(3)]
    return cache, counts, [*rows, rng.random(ROWS) < 0.5, *map(np.asarray, wanted)]


def payload_on(stage: Stage, seed: int) -> Payload:
    """What `said` draws, as the stage stores it."""
    spec, tensor = stage.spec, stage.stage.tensor
    cache, counts, rows = said(spec, seed)
    copies = spec.stored_kv_heads(tensor) // spec.kv_heads
    sharding = CacheSpec.of(stage, "float32").sharding
    whole = NamedSharding(stage.mesh, PartitionSpec())
    leaves = [jax.device_put(np.repeat(array, copies, axis=1), sharding) for array in cache]
    padding = ((0, 0), (0, spec.padded_vocab(tensor) - spec.vocab_size))
    small = [jax.device_put(np.pad(array, padding), whole) for array in counts]
    placed = [jax.device_put(array, whole) for array in rows]
    structure = jax.tree.structure(pack((), 1))
    layers = tuple(zip(leaves[::2], leaves[1::2], strict=True))[slice(*stage.stage.layers)]
    if stage.stage.layers[1] < spec.num_layers:
        return Payload(layers, NO_COUNTS, NO_ROWS)
    return Payload(
        layers,
        Counts(*small),
        Rows(placed[0], placed[1], placed[2], placed[3], jax.tree.unflatten(structure, placed[4:])),
    )


@pytest.mark.parametrize(
    ("family", "senders", "receivers"),
    [
        ("llama", 1, 2),  # 2 key/value heads
        ("llama", 2, 4),
        ("llama", 4, 2),
        ("llama", 1, 4),
        ("llama-tied", 4, 2),  # 1 key/value head
        ("qwen3", 2, 4),  # 4 key/value heads: cut
        ("qwen3", 4, 2),  # joined
        ("qwen3", 4, 1),
        ("gpt2", 2, 2),
    ],
)
def test_every_byte_arrives_where_it_belongs(family: str, senders: int, receivers: int) -> None:
    spec = spec_of(family)
    source, target = stage_on(spec, 0, senders), stage_on(spec, 8 - receivers, receivers)
    road = HandOver([source], [target], "float32", checked=True)
    road.warm_up([(ROWS, LENGTH)])
    sent, expected = payload_on(source, 1), payload_on(target, 1)
    with forbid_compilations():
        (there,) = road.send([sent])
    assert_same(there, expected)


@pytest.mark.parametrize(
    ("senders", "receivers"),
    [
        ([(0, 3, 1)], [(0, 1, 2), (1, 3, 1)]),
        ([(0, 1, 2), (1, 3, 1)], [(0, 2, 1), (2, 3, 4)]),
        ([(0, 2, 4), (2, 3, 1)], [(0, 3, 2)]),
    ],
)
def test_layers_find_their_stages(senders: list[tuple[int, int, int]], receivers: list[tuple[int, int, int]]) -> None:
    """(first layer, end, tensor degree) of the stages of either side."""
    spec, devices = spec_of("qwen3"), 0
    sides: list[list[Stage]] = [[], []]
    for side, stages in zip(sides, (senders, receivers), strict=True):
        for first, end, tensor in stages:
            side.append(stage_on(spec, devices, tensor, (first, end)))
            devices += tensor
    road = HandOver(sides[0], sides[1], "float32", checked=True)
    road.warm_up([(ROWS, LENGTH)])
    sent = [payload_on(stage, 5) for stage in sides[0]]
    with forbid_compilations():
        there = road.send(sent)
    assert_same(there, tuple(payload_on(stage, 5) for stage in sides[1]))


def assert_same(there: object, expected: object) -> None:
    """The same bytes on the same devices."""
    for got, wanted in zip(jax.tree.leaves(there), jax.tree.leaves(expected), strict=True):
        assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)
        assert got.dtype == wanted.dtype
        for own, other in zip(got.addressable_shards, wanted.addressable_shards, strict=True):
            assert own.device == other.device
            assert np.asarray(own.data).tobytes() == np.asarray(other.data).tobytes()


def test_the_checksum_sees_one_changed_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("llama")
    road = HandOver([stage_on(spec, 0, 1)], [stage_on(spec, 1, 2)], "float32", checked=True)
    road.warm_up([(ROWS, LENGTH)])
    payload = payload_on(stage_on(spec, 0, 1), 2)
    road.send([payload])
    carry = handover.carry_whole

    def corrupt(arrays: list[jax.Array], mesh: jax.sharding.Mesh) -> list[jax.Array]:
        *same, last = carry(arrays, mesh)
        return [*same, jax.device_put(~np.asarray(last), last.sharding)]

    monkeypatch.setattr(handover, "carry_whole", corrupt)
    with pytest.raises(EngineError, match="arrived altered"):
        road.send([payload])


def test_checksums_tell_contents_apart_and_layouts_not() -> None:
    spec = spec_of("llama")
    sums = [checksum([payload_on(stage_on(spec, 0, tensor), seed)], spec) for seed in (1, 2) for tensor in (1, 2, 4)]
    assert len(set(sums[:3])) == len(set(sums[3:])) == 1
    assert sums[0] != sums[3]


def test_an_unknown_shape_is_refused_by_name() -> None:
    spec = dataclasses.replace(spec_of("qwen3"), vocab_size=54)
    source = stage_on(spec, 0, 1)
    with pytest.raises(EngineError, match=f"no program cut {ROWS} {LENGTH}"):
        HandOver([source], [stage_on(spec, 1, 2)], "float32").send([payload_on(source, 1)])


@pytest.mark.parametrize(("senders", "receivers"), [(1, 2), (2, 4)])
def test_nothing_is_waited_for(senders: int, receivers: int) -> None:
    """A payload is on its way while what computes it still runs; the more it has to compute, the surer."""
    spec = spec_of("qwen3")
    source, target = stage_on(spec, 0, senders), stage_on(spec, 4, receivers)
    road = HandOver([source], [target], "float32")
    road.warm_up([(ROWS, LENGTH)])
    payload = payload_on(source, 3)

    def late(payload: Payload, steps: jax.Array) -> Payload:
        spent = jax.lax.fori_loop(0, steps, lambda _, x: jnp.tanh(x @ x), jnp.ones((200, 200)))
        return jax.tree.map(lambda x: jnp.where(spent[0, 0] > 2, jnp.zeros_like(x), x), payload)

    compute = jax.jit(late, out_shardings=jax.tree.map(lambda x: x.sharding, payload))
    for steps in (1, 100, 1000, 10_000):
        there = road.send([compute(payload, np.int32(steps))])
        under_way = not ready(there)
        assert checksum(there, spec) == checksum([payload], spec)
        # A checksum reads one copy of each array; the others may still be on their way.
        assert ready(jax.block_until_ready(there))
        if under_way:
            return
    raise AssertionError("the hand-over waits for its payload")


def test_routes_bring_every_stored_head() -> None:
    rng = random.Random(1)
    degrees = (1, 2, 3, 4, 6, 8)
    for _ in range(200):
        kv_heads, senders, receivers = rng.randint(1, 12), rng.choice(degrees), rng.choice(degrees)
        routes = head_routes(kv_heads, senders, receivers)
        held = np.repeat(np.arange(kv_heads), np.lcm(kv_heads, senders) // kv_heads).reshape(senders, -1)
        wanted = np.repeat(np.arange(kv_heads), np.lcm(kv_heads, receivers) // kv_heads).reshape(receivers, -1)
        for rank, own in enumerate(wanted):
            messages = [held[sender, list(routes.pieces[sender][piece])] for sender, piece in routes.messages[rank]]
            assert np.concatenate(messages)[list(routes.joined[rank])].tolist() == own.tolist()
        assert len({len(cuts) for cuts in routes.pieces}) == len({len(some) for some in routes.messages}) == 1
        assert len({len(heads) for cuts in routes.pieces for heads in cuts}) == 1
