"""A stage: some of a model's layers as arrays on a mesh of its own.

A `Blueprint` is the stage before its weights: every parameter's path, shape, logical axes and sharding, found without
allocating anything. Loading fills it (`bind`) and yields a `Stage`, whose parameters are a flat tuple of arrays:
compiled programs take that tuple and rebuild the module inside (`Stage.module`), since passing Flax objects costs
milliseconds per call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from exegpt_jax.models.decoder import StageModel
from exegpt_jax.models.encoder_decoder import EncoderDecoderStage
from exegpt_jax.sharding.rules import Rules
from solver.facts.model_spec import ModelSpec
from solver.facts.tensor_degree import check_tensor
from solver.plan.schedule import StageSpec


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter of a stage.

    Attributes:
      path: "blocks.17.attention.q.weight"; layers are numbered as in the whole model.
      shape: as stored: key/value heads repeated, vocabulary padded.
      dtype: as stored.
      axes: logical axis, or None, per dimension.
      sharding: how it lies on the stage's mesh.
    """

    path: str
    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str | None, ...]
    sharding: NamedSharding


@dataclasses.dataclass(frozen=True, eq=False)
class Blueprint:
    """A stage without its arrays; `leaves` stand in the order of `Stage.params`."""

    spec: ModelSpec
    stage: StageSpec
    dtype: str
    mesh: Mesh
    leaves: tuple[Leaf, ...]
    graphdef: nnx.GraphDef[StageModel]
    treedef: jax.tree_util.PyTreeDef

    def bind(self, params: Sequence[jax.Array]) -> Stage:
        """The stage with these arrays, one per leaf. Raises ValueError naming the first that does not fit."""
        if len(params) != len(self.leaves):
            raise ValueError(f"params: {len(params)} arrays for {len(self.leaves)} parameters")
        for leaf, array in zip(self.leaves, params, strict=True):
            if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                raise ValueError(f"{leaf.path}: {array.dtype}{array.shape} where {leaf.dtype}{leaf.shape} belongs")
            if not array.sharding.is_equivalent_to(leaf.sharding, array.ndim):
                raise ValueError(f"{leaf.path}: lies as {array.sharding}, not as {leaf.sharding}")
        return Stage(self, tuple(params))


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A blueprint with its arrays.

    Attributes:
      blueprint: what the arrays mean.
      params: one array per leaf of the blueprint, on the stage's mesh.
    """

    blueprint: Blueprint
    params: tuple[jax.Array, ...]

    @property
    def spec(self) -> ModelSpec:
        return self.blueprint.spec

    @property
    def stage(self) -> StageSpec:
        return self.blueprint.stage

    @property
    def mesh(self) -> Mesh:
        return self.blueprint.mesh

    @property
    def dtype(self) -> str:
        return self.blueprint.dtype

    def module(self, params: Sequence[jax.Array]) -> StageModel:
        """The Flax module over these arrays (or tracers); cheap only inside a program that is being traced."""
        return nnx.merge(self.blueprint.graphdef, jax.tree.unflatten(self.blueprint.treedef, params))


def blueprint(spec: ModelSpec, stage: StageSpec, dtype: str, mesh: Mesh, rules: Rules | None = None) -> Blueprint:
    """Lays out a stage on a mesh without allocating anything.

    Raises ValueError with one line if the tensor degree does not divide the heads or the feed-forward width.
    """
    check_tensor(spec, stage.tensor)
    if mesh.shape["tensor"] != stage.tensor:
        raise ValueError(f"tensor: {stage.tensor}, but the mesh has {mesh.shape['tensor']} devices on that axis")
    rules = rules or Rules()
    model = EncoderDecoderStage if spec.encoder_layers else StageModel
    module = nnx.eval_shape(lambda: model(spec, stage.layers, stage.tensor, jnp.dtype(dtype)))
    graphdef, state = nnx.split(module)
    first = stage.layers[0]
    leaves = []
    for path, param in nnx.to_flat_state(state):
        keys = [str(first + key if isinstance(key, int) else key) for key in path]
        value = param.get_value()
        sharding = NamedSharding(mesh, rules.spec(param.axes, value.shape, mesh))
        leaves.append(Leaf(".".join(keys), value.shape, value.dtype, param.axes, sharding))
    return Blueprint(spec, stage, dtype, mesh, tuple(leaves), graphdef, jax.tree.structure(state))
