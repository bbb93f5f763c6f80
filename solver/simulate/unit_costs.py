"""From a Profile and a workload to UnitCosts: what one layer, each end and each hand-over cost by whole rows.

A batch of r prompts of mixed lengths is looked up as the uniform batch that has its sum of tokens, which the matrix
products cost, and its sum of squared lengths, which attention costs: rows' = r E[I]^2 / E[I^2] of E[I^2] / E[I] tokens.
One prompt alone is no mix: it is looked up at every length, since fewer rows than one cannot be.
A profile of compiled shapes (`padded`) is looked up at the calls that the runner would make instead.
"""

from __future__ import annotations

import collections

import numpy as np

from solver.facts.cluster import LEVELS, Cluster
from solver.facts.model_spec import LayerKind, ModelSpec
from solver.facts.profile import Mark, Profile, Table
from solver.facts.workload import Floats
from solver.plan.memory import dtype_bytes
from solver.simulate.costs import UnitCosts
from solver.simulate.lengths import Lengths
from solver.simulate.memory import block_bytes, cache_token_bytes, embed_bytes, head_bytes
from solver.simulate.padding import Padding, batch_sizes, encode_calls, moved_tokens


def unit_costs(
    profile: Profile,
    spec: ModelSpec,
    lengths: Lengths,
    cluster: Cluster,
    tensor: int,
    most_rows: int,
    padding: Padding | None = None,
) -> UnitCosts:
    """Costs on the profile's device kind at one tensor degree.

    Args:
      profile: of `spec`; layer kinds that differ enter as their mean over the model's layers.
      lengths: moments of the workload.
      cluster: for its links.
      tensor: degree; the profile must have it.
      most_rows: the largest batch that will be asked for.
      padding: the plan's shapes; needed by a padded profile and by no other.

    Raises:
      ValueError: the profile lacks the degree or a layer kind, or padding is missing.
    """
    if most_rows < 1:
        raise ValueError(f"most_rows: {most_rows} is too small; give at least 1")
    if profile.padded != (padding is not None):
        raise ValueError(f"padding: {'needed by' if profile.padded else 'given with'} a profile of padded shapes alone")
    reader = _Reader(profile, spec, tensor)
    rows = np.arange(most_rows + 1, dtype=np.float64)
    activation_bytes = spec.hidden_size * dtype_bytes(profile.dtype)
    links = {level: cluster.link(level) for level in LEVELS}
    if padding is None:
        contexts = _knots(reader, lengths)
        encode, embed, head = _encode_exact(reader, rows, lengths)
        calls = np.ones_like(rows)
    else:
        contexts = np.array(padding.cache_rungs, np.float64)
        encode, embed, head, calls = _encode_padded(reader, most_rows, lengths, padding)
    tokens = moved_tokens(padding, lengths, most_rows)
    # Iterations of a phase that goes in one dispatch have no dispatch of their own.
    decode_dispatch_s = 0.0 if profile.phase_s else profile.iteration_dispatch_s
    return UnitCosts(
        kind=profile.device_kind,
        tensor=tensor,
        encode_s=_from_one(encode),
        contexts=contexts,
        decode_s=_from_one(reader.layer("decode", rows[None, :], contexts[:, None])),
        embed_encode_s=_from_one(embed),
        embed_decode_s=_from_one(reader.embed(rows)),
        head_encode_s=_from_one(head + calls * profile.dispatch_s),
        head_decode_s=_from_one(reader.head(rows) + decode_dispatch_s),
        hand_over_encode_s={
            level: _from_one(
                calls * (link.transfer_s(tokens / np.maximum(calls, 1e-9) * activation_bytes) + profile.dispatch_s)
            )
            for level, link in links.items()
        },
        hand_over_decode_s={
            level: _from_one(link.transfer_s(rows * activation_bytes) + profile.iteration_dispatch_s)
            for level, link in links.items()
        },
        weights_bytes=block_bytes(spec, tensor, profile.dtype),
        embed_bytes=embed_bytes(spec, tensor, profile.dtype),
        head_bytes=head_bytes(spec, tensor, profile.dtype),
        cache_token_bytes=cache_token_bytes(spec, tensor, profile.cache_dtype),
        estimated=reader.estimated,
        phase_s=profile.phase_s,
    )


class _Reader:
    """Looks a profile up at one tensor degree and notes whether a number was an estimate or an extrapolation."""

    def __init__(self, profile: Profile, spec: ModelSpec, tensor: int) -> None:
        counts: collections.Counter[LayerKind] = collections.Counter(spec.layer_kinds())
        try:
            layers = [(profile.layer(tensor, kind), count / spec.num_layers) for kind, count in counts.items()]
            self._ends = profile.end(tensor)
        except KeyError as error:
            raise ValueError(str(error.args[0])) from None
        self.tables = {
            "encode": [(times.encode, share) for times, share in layers],
            "decode": [(times.decode, share) for times, share in layers],
        }
        self.estimated = False

    def layer(self, phase: str, rows: Floats, second: Floats | float) -> Floats:
        """Mean over the model's layers."""
        return np.sum([share * self._at(table, rows, second) for table, share in self.tables[phase]], axis=0)

    def embed(self, tokens: Floats) -> Floats:
        return self._at(self._ends.embed, tokens, 0.0)

    def head(self, rows: Floats) -> Floats:
        return self._at(self._ends.head, rows, 0.0)

    def _at(self, table: Table, first: Floats, second: Floats | float) -> Floats:
        """Nothing costs less than the smallest sizes measured: fewer rows are looked up as those."""
        x = np.maximum(np.asarray(first, np.float64), table.first[0])
        y = np.maximum(np.asarray(second, np.float64), table.second[0])
        i, j = (
            min(int(np.searchsorted(grid, sizes.max())), len(grid) - 1)
            for grid, sizes in ((table.first, x), (table.second, y))
        )
        beyond = x.max() > table.first[-1] or (len(table.second) > 1 and y.max() > table.second[-1])
        self.estimated |= bool(beyond or (table.marks[: i + 1, : j + 1] >= Mark.EXTRAPOLATED).any())
        return table.at(x, y)


def _encode_exact(reader: _Reader, rows: Floats, lengths: Lengths) -> tuple[Floats, Floats, Floats]:
    mean, mean2 = lengths.mean_input, lengths.mean_input2
    layer = reader.layer("encode", rows * mean**2 / mean2, mean2 / mean)
    workload = lengths.workload
    tokens, places = np.unique(workload.input_tokens, return_inverse=True)
    shares = np.bincount(places, weights=workload.probability)
    layer[1] = shares @ reader.layer("encode", np.ones(len(tokens)), tokens.astype(np.float64))
    return layer, reader.embed(rows * mean), reader.head(rows)


def _encode_padded(
    reader: _Reader, most_rows: int, lengths: Lengths, padding: Padding
) -> tuple[Floats, Floats, Floats, Floats]:
    """Layer, embedding, head and number of calls, of each batch: expected sums over its calls."""
    sizes = batch_sizes(most_rows)
    columns = []
    for size in sizes:
        shape = np.array(encode_calls(padding, lengths, size))
        calls, rows, tokens = shape.T
        columns.append(
            (
                calls @ reader.layer("encode", rows, tokens),
                calls @ reader.embed(rows * tokens),
                calls @ reader.head(rows),
                calls.sum(),
            )
        )
    table = np.array(columns).T
    batch = np.arange(most_rows + 1)
    layer, embed, head, calls_of = (np.interp(batch, sizes, column) for column in table)
    return layer, embed, head, calls_of


def _knots(reader: _Reader, lengths: Lengths) -> Floats:
    """Contexts at which the profile bends, between the shortest and the longest that the workload has."""
    least = float(lengths.workload.input_tokens.min())
    most = float(lengths.workload.most_tokens)
    bends = np.concatenate([table.second for table, _ in reader.tables["decode"]])
    return np.unique(np.concatenate([[least, max(most, least + 1)], bends[(bends > least) & (bends < most)]]))


def _from_one(seconds: Floats) -> Floats:
    """No rows cost nothing."""
    seconds = np.array(seconds, np.float64)
    seconds[..., 0] = 0.0
    return seconds
