"""What the compiled programs compute: encode, insert, decode, release and move, as pure functions to be traced.

Each takes the stage's parameters as a flat tuple and rebuilds the Flax module inside (passing modules to a program
costs milliseconds a call). Shapes are those of the arguments; `exegpt_jax.engine.programs` compiles one program per
bucket.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from exegpt_jax.engine import cache as kv
from exegpt_jax.engine.api import MAX_LOGPROBS
from exegpt_jax.engine.sampling import Chosen, Counts, SamplingRows, choose, count_tokens, pack
from exegpt_jax.engine.state import Block, Cache, Payload, Rows, accept, count, put_rows, take_rows
from exegpt_jax.models.decoder import StageModel
from exegpt_jax.sharding.stage import Stage

Params = tuple[Array, ...]
Carry = tuple[Int[Array, ""], kv.Layers, Counts, Rows, Block]


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """The functions of one stage that holds the whole model.

    Attributes:
      stage: its parameters' meaning.
      cache_dtype: of keys and values.
      cache_tokens: allocated positions of a row.
      most_iterations: room for decoded tokens in one dispatch.
    """

    stage: Stage
    cache_dtype: str
    cache_tokens: int
    most_iterations: int

    @property
    def _vocab(self) -> int:
        return self.stage.spec.padded_vocab(self.stage.stage.tensor)

    def alloc(self, rows: int) -> tuple[Cache, Rows]:
        """An empty state."""
        counts = Counts(jnp.zeros((rows, self._vocab), jnp.int32), jnp.zeros((rows, self._vocab), jnp.bool_))
        return Cache(
            kv.alloc(kv.CacheSpec.of(self.stage, self.cache_dtype), rows, self.cache_tokens), counts
        ), _no_rows(rows)

    def alloc_payload(self, length: int) -> kv.Layers:
        """Room for one prompt that will be encoded in chunks."""
        return kv.alloc(kv.CacheSpec.of(self.stage, self.cache_dtype), 1, length)

    def encode(
        self,
        params: Params,
        tokens: Int[Array, "rows tokens"],
        lengths: Int[Array, "rows"],
        generated: Int[Array, "rows"],
        wanted: SamplingRows,
    ) -> tuple[Payload, Block]:
        """Whole prompts from position 0; rows beyond the real ones have length 0."""
        return self.encode_end(params, tokens, tokens, lengths, generated, wanted)

    def encode_chunk(
        self,
        params: Params,
        layers: kv.Layers,
        tokens: Int[Array, "1 tokens"],
        start: Int[Array, "1"],
        history: Int[Array, "1 length"],
        lengths: Int[Array, "1"],
        generated: Int[Array, "1"],
        wanted: SamplingRows,
    ) -> tuple[Payload, Block]:
        """The tokens of one prompt from `start` to `lengths`, behind what `layers` holds already.

        `history` is the prompt up to `lengths`; the first token that comes out counts only with the last chunk.
        """
        return self.chunk_end(params, layers, tokens, start, history, lengths, generated, wanted)

    def insert(self, cache: Cache, rows: Rows, payload: Payload, slots: Int[Array, "new"]) -> tuple[Cache, Rows]:
        """Puts encoded prompts into their slots; slots beyond the cache are dropped."""
        counts = jax.tree.map(lambda held, new: held.at[slots].set(new, mode="drop"), cache.counts, payload.counts)
        return Cache(kv.insert(cache.layers, payload.layers, slots), counts), put_rows(rows, payload.rows, slots)

    def decode(
        self, params: Params, cache: Cache, rows: Rows, iterations: Int[Array, ""], rows_bucket: int, cache_bucket: int
    ) -> tuple[Cache, Rows, Block]:
        """Up to `iterations` tokens for the lowest rows, in one loop that ends early when every row has ended."""
        model = self.stage.module(params)
        ops = kv.SlotOps(self.cache_dtype)

        def more(carry: Carry) -> Bool[Array, ""]:
            step, _, _, live, _ = carry
            return (step < iterations) & jnp.any(going(live, cache_bucket))

        def body(carry: Carry) -> Carry:
            step, view, counts, live, block = carry
            active = going(live, cache_bucket)
            positions = jnp.where(active, live.position, -1)[:, None]
            x, view = model.forward(live.token[:, None], positions, view, ops, prompt_tokens(live))
            counts, after, chosen = self._sample(model, x[:, 0], counts, live, active)
            return step + 1, view, counts, after, record(block, step, chosen, active)

        view = kv.cut(cache.layers, rows_bucket, cache_bucket)
        own_rows = jax.tree.map(lambda held: held[:rows_bucket], rows)
        carry = (jnp.int32(0), view, cache.counts, own_rows, empty_block(self.most_iterations, rows_bucket))
        _, view, counts, after, block = lax.while_loop(more, body, carry)
        layers = kv.put_back(cache.layers, view, own_rows.position, after.position, self.most_iterations)
        rows = jax.tree.map(lambda held, own: held.at[:rows_bucket].set(own), rows, after)
        block = block._replace(done=~after.active)
        return Cache(layers, counts), rows, block

    def release(self, rows: Rows, slots: Int[Array, "freed"]) -> Rows:
        """Ends rows; slots beyond the cache are dropped."""
        return rows._replace(active=rows.active.at[slots].set(False, mode="drop"))

    def move(
        self, cache: Cache, rows: Rows, sources: Int[Array, "moves"], targets: Int[Array, "moves"]
    ) -> tuple[Cache, Rows]:
        """Copies rows onto free slots and ends them where they were; slots beyond the cache are dropped."""
        counts = jax.tree.map(
            lambda held: held.at[targets].set(jnp.take(held, sources, axis=0, mode="clip"), mode="drop"), cache.counts
        )
        moved = put_rows(rows, take_rows(rows, sources), targets)
        return Cache(kv.move(cache.layers, sources, targets), counts), self.release(moved, sources)

    def encode_end(
        self,
        params: Params,
        x: Int[Array, "rows tokens"] | Float[Array, "rows tokens embed"],
        tokens: Int[Array, "rows tokens"],
        lengths: Int[Array, "rows"],
        generated: Int[Array, "rows"],
        wanted: SamplingRows,
    ) -> tuple[Payload, Block]:
        """Whole prompts through this stage and its head; `x` is what the stages before made of `tokens`."""
        model = self.stage.module(params)
        x, layers = model.forward(x, prompt_positions(tokens.shape[1], 0, lengths), None, kv.SlotOps(self.cache_dtype))
        if self.stage.spec.first_token == "decode":
            return self._begun(layers, tokens, lengths, wanted)
        last = jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
        return self._first(model, last, layers, tokens, lengths, generated, wanted)

    def chunk_end(
        self,
        params: Params,
        layers: kv.Layers,
        x: Int[Array, "1 tokens"] | Float[Array, "1 tokens embed"],
        start: Int[Array, "1"],
        history: Int[Array, "1 length"],
        lengths: Int[Array, "1"],
        generated: Int[Array, "1"],
        wanted: SamplingRows,
    ) -> tuple[Payload, Block]:
        """The same for a chunk."""
        model = self.stage.module(params)
        positions = prompt_positions(x.shape[1], start[:, None], lengths)
        x, layers = model.forward(x, positions, layers, kv.SlotOps(self.cache_dtype))
        last = jnp.take_along_axis(x, (lengths - start - 1)[:, None, None], axis=1)[:, 0]
        return self._first(model, last, layers, history, lengths, generated, wanted)

    def _sample(
        self,
        model: StageModel,
        x: Float[Array, "rows embed"],
        counts: Counts,
        live: Rows,
        active: Bool[Array, "rows"],
    ) -> tuple[Counts, Rows, Chosen]:
        """One more token of the active rows, from their newest activations."""
        logits = self._scores(model, x)
        position = live.position + 1
        chosen = choose(logits, live.wanted, counts, position, live.generated, active, self.stage.spec.vocab_size)
        after = accept(live, active, chosen.token, position, self.cache_tokens)
        return count(counts, chosen.token, active), after, chosen

    def _first(
        self,
        model: StageModel,
        last: Float[Array, "rows embed"],
        layers: kv.Layers,
        history: Int[Array, "rows length"],
        lengths: Int[Array, "rows"],
        generated: Int[Array, "rows"],
        wanted: SamplingRows,
    ) -> tuple[Payload, Block]:
        """Samples the first token of each row from its last activation, and makes its row."""
        real = lengths > 0
        logits = self._scores(model, last)
        counts = count_tokens(history, lengths, generated, self._vocab)
        chosen = choose(logits, wanted, counts, lengths, generated, real, self.stage.spec.vocab_size)
        fresh = Rows(jnp.zeros_like(lengths), lengths, generated, real, wanted)
        rows = accept(fresh, real, chosen.token, lengths, self.cache_tokens)
        block = record(empty_block(1, lengths.shape[0]), jnp.int32(0), chosen, real)._replace(done=~rows.active)
        return Payload(layers, count(counts, chosen.token, real), rows), block

    def _begun(
        self,
        layers: kv.Layers,
        tokens: Int[Array, "rows tokens"],
        lengths: Int[Array, "rows"],
        wanted: SamplingRows,
    ) -> tuple[Payload, Block]:
        """Rows whose decoder has seen no output yet: the start token stands behind the prompt, and no token is told."""
        real, zeros = lengths > 0, jnp.zeros_like(lengths)
        rows = Rows(jnp.full_like(lengths, self.stage.spec.start_token), lengths, zeros, real, wanted)
        block = empty_block(1, lengths.shape[0])
        counts = count_tokens(tokens, lengths, zeros, self._vocab)
        return Payload(layers, counts, rows), block._replace(tokens=block.tokens[..., :0], done=~real)

    def _scores(self, model: StageModel, x: Float[Array, "rows embed"]) -> Float[Array, "rows vocab"]:
        """Logits, whole on every device: sampling would otherwise communicate in each of its steps."""
        assert model.head is not None
        return lax.with_sharding_constraint(model.head(x), NamedSharding(self.stage.mesh, PartitionSpec()))


def going(live: Rows, length: int) -> Bool[Array, "rows"]:
    """Rows that decode on `length` positions; one at their end waits for a call with more."""
    return live.active & (live.position < length)


def prompt_tokens(live: Rows) -> Int[Array, "rows"]:
    """How long each row's prompt is, where a decoder begins behind it with a start token of its own."""
    return live.position - live.generated


def prompt_positions(
    tokens: int, start: int | Int[Array, "rows 1"], lengths: Int[Array, "rows"]
) -> Int[Array, "rows tokens"]:
    """Positions of a call's tokens from `start` on; -1 behind the end of a row's prompt."""
    index = jnp.arange(tokens)[None, :] + start
    return jnp.where(index < lengths[:, None], index, -1)


def _no_rows(rows: int) -> Rows:
    zeros = jnp.zeros(rows, jnp.int32)
    wanted = jax.tree.map(jnp.asarray, pack((), rows))
    return Rows(zeros, zeros, zeros, jnp.zeros(rows, jnp.bool_), wanted)


def empty_block(iterations: int, rows: int) -> Block:
    """Room for so many iterations, every row ended."""
    wide = (iterations, rows, MAX_LOGPROBS)
    return Block(
        tokens=jnp.zeros((iterations, rows, 1), jnp.int32),
        counts=jnp.zeros((iterations, rows), jnp.int32),
        done=jnp.ones(rows, jnp.bool_),
        chosen=jnp.zeros((iterations, rows), jnp.float32),
        top_ids=jnp.zeros(wide, jnp.int32),
        top=jnp.zeros(wide, jnp.float32),
    )


def record(block: Block, step: Int[Array, ""], chosen: Chosen, happened: Bool[Array, "rows"]) -> Block:
    """The block with the tokens of one iteration."""
    return Block(
        tokens=block.tokens.at[step].set(chosen.token[:, None]),
        counts=block.counts.at[step].set(happened.astype(jnp.int32)),
        done=block.done,
        chosen=block.chosen.at[step].set(chosen.logprob),
        top_ids=block.top_ids.at[step].set(chosen.top_ids),
        top=block.top.at[step].set(chosen.top),
    )
