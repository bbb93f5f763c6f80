"""What the programs of one of several stages compute: the same work as `Steps`, cut where the layers are cut.

    tokens -> [embed, blocks 0:a] -> x -> [blocks a:b] -> x -> [blocks b:end, head, sample] -> tokens

Every stage holds keys and values of its own layers; the last alone holds rows and counts, since it samples. A decode
micro-batch works on a view of its part of the cache, cut out before a phase's first iteration and put back behind its
last; one iteration is one program on every stage.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from exegpt_jax.engine import cache as kv
from exegpt_jax.engine.sampling import Counts
from exegpt_jax.engine.state import NO_COUNTS, NO_ROWS, Block, Cache, Feed, Payload, Rows, take_rows
from exegpt_jax.engine.steps import Params, Steps, empty_block, going, prompt_positions, prompt_tokens, record

Activations = Int[Array, "rows tokens"] | Float[Array, "rows tokens embed"]


@dataclasses.dataclass(frozen=True, eq=False)
class StageSteps(Steps):
    """The functions of one stage; attributes as in `Steps`."""

    @property
    def samples(self) -> bool:
        """Whether it has the last layer, hence the head."""
        return self.stage.stage.layers[1] == self.stage.spec.num_layers

    def alloc(self, rows: int) -> tuple[Cache, Rows]:
        """An empty part of the cache."""
        if self.samples:
            return super().alloc(rows)
        spec = kv.CacheSpec.of(self.stage, self.cache_dtype)
        return Cache(kv.alloc(spec, rows, self.cache_tokens), NO_COUNTS), NO_ROWS

    def take(self, cache: Cache, rows: Rows, sources: Int[Array, "taken"]) -> Payload:
        """Copies of whole slots, for other slots of any part."""
        counts = jax.tree.map(lambda held: jnp.take(held, sources, axis=0, mode="clip"), cache.counts)
        return Payload(kv.gather(cache.layers, sources), counts, take_rows(rows, sources))

    # Encode: `encode_end` and `chunk_end` are what the last stage runs.

    def encode_on(self, params: Params, x: Activations, lengths: Int[Array, "rows"]) -> tuple[Payload, Activations]:
        """Whole prompts through this stage, and what it hands on."""
        positions = prompt_positions(x.shape[1], 0, lengths)
        x, layers = self.stage.module(params).forward(x, positions, None, kv.SlotOps(self.cache_dtype))
        return Payload(layers, NO_COUNTS, NO_ROWS), x

    def chunk_on(
        self, params: Params, layers: kv.Layers, x: Activations, start: Int[Array, "1"], lengths: Int[Array, "1"]
    ) -> tuple[Payload, Activations]:
        """The same for a chunk of one prompt, behind what `layers` holds already."""
        positions = prompt_positions(x.shape[1], start[:, None], lengths)
        x, layers = self.stage.module(params).forward(x, positions, layers, kv.SlotOps(self.cache_dtype))
        return Payload(layers, NO_COUNTS, NO_ROWS), x

    # Decode: begin -> (cut) -> iterations -> (put back, keep).

    def begin(self, rows: Rows, count: int, length: int) -> tuple[Rows, Feed]:
        """The lowest `count` rows of a part, and what their first iteration begins with."""
        own = jax.tree.map(lambda held: held[:count], rows)
        return own, self._feed(own, length)

    def cut(self, layers: kv.Layers, count: int, length: int) -> kv.Layers:
        """The view that a phase works on."""
        return kv.cut(layers, count, length)

    def iterate_on(self, params: Params, view: kv.Layers, feed: Feed) -> tuple[kv.Layers, Feed]:
        """One iteration through this stage."""
        ops, prompts = kv.SlotOps(self.cache_dtype), feed.prompt_tokens
        x, view = self.stage.module(params).forward(feed.x, feed.position[:, None], view, ops, prompts)
        return view, feed._replace(x=x)

    def iterate_end(
        self, params: Params, view: kv.Layers, counts: Counts, rows: Rows, feed: Feed
    ) -> tuple[kv.Layers, Counts, Rows, Feed, Block]:
        """One iteration through the last stage: its tokens, and what the next one begins with."""
        model = self.stage.module(params)
        ops, prompts = kv.SlotOps(self.cache_dtype), feed.prompt_tokens
        x, view = model.forward(feed.x, feed.position[:, None], view, ops, prompts)
        active = feed.position >= 0
        counts, after, chosen = self._sample(model, x[:, 0], counts, rows, active)
        block = record(empty_block(1, active.shape[0]), jnp.int32(0), chosen, active)._replace(done=~after.active)
        return view, counts, after, self._feed(after, view[0][1].shape[2]), block

    def put_back(
        self, layers: kv.Layers, view: kv.Layers, first: Int[Array, "rows"], iterations: Int[Array, ""]
    ) -> kv.Layers:
        """The part of the cache with what a phase wrote into its view, from each row's first position on."""
        end = jnp.where(first < 0, first, jnp.minimum(first + iterations, view[0][1].shape[2]))
        return kv.put_back(layers, view, first, end, self.most_iterations)

    def keep(self, rows: Rows, own: Rows) -> Rows:
        """All rows of a part, the lowest of them as a phase has left them."""
        count = own.token.shape[0]
        return jax.tree.map(lambda held, new: held.at[:count].set(new), rows, own)

    def _feed(self, rows: Rows, length: int) -> Feed:
        prompts = prompt_tokens(rows) if self.stage.spec.encoder_layers else None
        return Feed(rows.token[:, None], jnp.where(going(rows, length), rows.position, -1), prompts)
