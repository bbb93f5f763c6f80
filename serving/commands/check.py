"""Says whether a model directory is supported, why not if not, and the bytes that it needs on each device.

usage: exegpt check DIR, where DIR is a model directory, a config.json, or a preset such as llama-3-8b. Where weights
are present their names, shapes and dtypes are compared with what config.json asks for; a converted checkpoint is
verified file by file. Nothing is loaded, and no accelerator is needed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from exegpt_jax.weights import manifest
from exegpt_jax.weights.checkpoint import check_tensors, common_dtype, has_safetensors, open_checkpoint
from solver.facts import presets
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.facts.parameters import parameters
from solver.facts.tensor_degree import check_tensor, tensor_degrees
from solver.plan.memory import DTYPE_BYTES, DeviceMemory, cache_row_bytes, format_bytes, memory_table, rows_that_fit
from solver.plan.plan import longest_whole_prompt, make_buckets
from solver.plan.schedule import Schedule, StageSpec

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "the same as DIR", flag_values=FLAGS)
flags.DEFINE_integer("tensor", None, "tensor-parallel degree; all that fit, up to 8, if absent", 1, flag_values=FLAGS)
flags.DEFINE_enum("dtype", None, tuple(DTYPE_BYTES), "of the weights; the checkpoint's if absent", flag_values=FLAGS)
flags.DEFINE_enum("cache_dtype", None, tuple(DTYPE_BYTES), "of the cache; --dtype's if absent", flag_values=FLAGS)
flags.DEFINE_integer("max_rows", 32, "rows allocated in the key/value cache", 1, flag_values=FLAGS)
flags.DEFINE_integer("encode_batch", 8, "B_E: prompts per encode phase", 1, flag_values=FLAGS)
flags.DEFINE_integer(
    "cache_tokens", None, "positions allocated per row; 2048 or the model's limit if absent", 2, flag_values=FLAGS
)
flags.DEFINE_integer(
    "max_prompt_tokens", None, "longest prompt; half of --cache_tokens if absent", 1, flag_values=FLAGS
)
flags.DEFINE_float("device_gib", None, "memory of one device: says how many rows fit", 0.0, flag_values=FLAGS)
flags.DEFINE_float("memory_fraction", 0.9, "share of --device_gib that may be used", 0.01, 1.0, flag_values=FLAGS)

_DEFAULT_CACHE_TOKENS = 2048
_MOST_ROWS = 1 << 20


def main(argv: list[str]) -> int:
    """Prints the verdict and the table; what is not supported raises ValueError with the reason in one line."""
    path = presets.find("models", _given(argv))
    spec = read_model_spec(path)
    if FLAGS.tensor is not None:
        check_tensor(spec, FLAGS.tensor)
    weights, stored_dtype = _check_weights(path, spec)
    sizes = _Sizes.from_flags(spec, stored_dtype)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"supported: {_describe(spec)}", markup=False)
    console.print(f"weights: {weights}", markup=False)
    degrees = (FLAGS.tensor,) if FLAGS.tensor else tensor_degrees(spec)
    console.print(_bytes_table(spec, sizes, degrees))
    if FLAGS.device_gib is not None:
        usable_bytes = int(FLAGS.device_gib * 2**30 * FLAGS.memory_fraction)
        for tensor in degrees:
            console.print(f"tensor={tensor}: {_fitting(spec, sizes, tensor, usable_bytes)}", markup=False)
    return 0


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What the bytes depend on besides the model."""

    dtype: str
    cache_dtype: str
    max_rows: int
    encode_batch: int
    cache_tokens: int
    max_prompt_tokens: int

    @classmethod
    def from_flags(cls, spec: ModelSpec, stored_dtype: str) -> _Sizes:
        dtype = FLAGS.dtype or stored_dtype
        cache_tokens = FLAGS.cache_tokens or min(_DEFAULT_CACHE_TOKENS, spec.max_positions)
        if cache_tokens > spec.max_positions:
            raise ValueError(f"cache_tokens: {cache_tokens} exceeds the model's {spec.max_positions}; lower it")
        prompt_tokens = min(FLAGS.max_prompt_tokens or cache_tokens // 2, cache_tokens - 1, longest_whole_prompt(spec))
        return cls(
            dtype, FLAGS.cache_dtype or dtype, FLAGS.max_rows, FLAGS.encode_batch, cache_tokens, max(1, prompt_tokens)
        )

    def memory(self, spec: ModelSpec, tensor: int, rows: int) -> DeviceMemory:
        """What each device of one stage over `tensor` devices holds with that many rows."""
        stage = StageSpec("both", (0, spec.num_layers), tuple(range(tensor)), tensor)
        batch = min(self.encode_batch, rows)
        schedule = Schedule(
            policy="rra", encode_batch=batch, decode_iterations=1, decode_batch=rows, max_rows=rows, stages=(stage,),
            micro_batch=rows, encode_micro_batch=batch,
        )  # fmt: skip
        buckets = make_buckets(schedule, self.cache_tokens, self.max_prompt_tokens)
        return memory_table(spec, schedule, buckets, self.dtype, self.cache_dtype)[0]


def _given(argv: list[str]) -> str:
    names = [*argv[1:], *([FLAGS.model] if FLAGS.model else [])]
    if len(names) != 1:
        raise ValueError(f"arguments: {len(names)} models given; name one: exegpt check DIR")
    return names[0]


def _check_weights(path: Path, spec: ModelSpec) -> tuple[str, str]:
    """What the directory holds, in words, and its dtype. Raises ValueError if it does not fit the config."""
    if manifest.is_checkpoint(path):
        found = manifest.verify(path)
        expected = {p.path: p.shape for p in parameters(spec, found.layers, found.tensor)}
        wrong = [name for name in {**expected, **found.parameters} if expected.get(name) != found.parameters.get(name)]
        if wrong:
            raise ValueError(f"{path}: {len(wrong)} parameters do not fit config.json, first {wrong[0]}; convert again")
        kind = f"converted checkpoint of {len(expected)} parameters, {found.dtype}, tensor={found.tensor}"
        return f"{kind}; every file is as it was written", found.dtype
    if path.is_dir() and has_safetensors(path):
        with open_checkpoint(path) as files:
            tensors = {name: file.tensors[name] for name, file in files.items()}
            names = check_tensors(path, spec, tensors)
            dtype = common_dtype(tensors[name] for name in names.values())
            return f"{len(names)} tensors in safetensors, {dtype}; names and shapes agree with config.json", dtype
    return "none here; sizes follow from config.json alone", spec.dtype


def _describe(spec: ModelSpec) -> str:
    count = sum(p.elements_per_device(1) for p in parameters(spec, (0, spec.num_layers), 1))
    size = f"{count / 1e9:.4g}B" if count >= 1e9 else f"{count / 1e6:.4g}M"
    encoders = spec.encoder_layers
    layers = f"{encoders} encoder and {spec.num_layers - encoders} decoder" if encoders else f"{spec.num_layers}"
    positions = "relative positions" if spec.relative else f"{spec.max_positions} positions"
    return (
        f"{spec.family}, {size} parameters: {layers} layers, hidden {spec.hidden_size}, {spec.heads} heads "
        f"({spec.kv_heads} key/value), feed-forward {spec.mlp_size}, vocabulary {spec.vocab_size}, "
        f"{positions}"
    )


def _bytes_table(spec: ModelSpec, sizes: _Sizes, degrees: tuple[int, ...]) -> Table:
    table = Table(
        title=f"Bytes per device: weights {sizes.dtype}, cache {sizes.cache_dtype}, {sizes.max_rows} rows of "
        f"{sizes.cache_tokens} positions, {sizes.encode_batch} prompts of {sizes.max_prompt_tokens} tokens at once",
        title_justify="left",
    )
    table.add_column("")
    for tensor in degrees:
        table.add_column(f"tensor={tensor}", justify="right")
    columns = [sizes.memory(spec, tensor, sizes.max_rows) for tensor in degrees]
    table.add_row("weights", *(format_bytes(memory.weights_bytes) for memory in columns))
    table.add_row("cache, per row", *(_row_bytes(spec, sizes, tensor) for tensor in degrees))
    table.add_row("cache, all rows", *(format_bytes(memory.cache_bytes) for memory in columns))
    table.add_row("token counts", *(format_bytes(memory.counts_bytes) for memory in columns))
    table.add_row("prompts under way", *(format_bytes(memory.payload_bytes) for memory in columns))
    table.add_row("temporaries (estimate)", *(format_bytes(memory.temporary_bytes) for memory in columns))
    table.add_section()
    table.add_row("total", *(format_bytes(memory.total_bytes) for memory in columns))
    return table


def _row_bytes(spec: ModelSpec, sizes: _Sizes, tensor: int) -> str:
    stage = StageSpec("both", (0, spec.num_layers), tuple(range(tensor)), tensor)
    return format_bytes(cache_row_bytes(spec, stage, sizes.cache_tokens, sizes.cache_dtype))


def _fitting(spec: ModelSpec, sizes: _Sizes, tensor: int, usable_bytes: int) -> str:
    try:
        rows = rows_that_fit(lambda rows: (sizes.memory(spec, tensor, rows),), usable_bytes, _MOST_ROWS)
    except ValueError as error:
        return f"does not fit: {error}"
    return f"{rows} rows fit into {format_bytes(usable_bytes)}"
