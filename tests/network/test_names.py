"""What structure_from_params makes of the names that real packages give their parameters."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_ext
from optax_ext import decay_mask, structure_from_params


def tree(**shapes):
  """Keys with slashes are nested dicts; values are shapes."""
  nested: dict[str, Any] = {}
  for path, shape in shapes.items():
    *above, last = path.split("/")
    node = nested
    for name in above:
      node = node.setdefault(name, {})
    node[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
  return nested


def flat(**shapes):
  return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


class Case(NamedTuple):
  params: Any
  weights: dict[str, tuple[int, ...]]  # contracted axes, in order of depth
  biases: dict[str, str]  # the weight of each
  rest: set[str]  # of no layer


CASES = {
  "torch": Case(
    flat(
      **{
        "0.weight": (16, 8),
        "0.bias": (16,),
        "2.conv1.weight": (4, 16, 3, 3),
        "10.norm.weight": (4,),
        "10.norm.bias": (4,),
        "10.norm.running_mean": (4,),
        "10.norm.running_var": (4,),
      }
    ),
    {"0.weight": (1,), "2.conv1.weight": (1, 2, 3)},
    {"0.bias": "0.weight"},
    {"10.norm.weight", "10.norm.bias", "10.norm.running_mean", "10.norm.running_var"},
  ),
  "torch transformer": Case(
    flat(
      **{
        "wte.weight": (100, 8),
        "wpe.weight": (16, 8),
        "h.0.attn.in_proj_weight": (24, 8),
        "h.0.attn.in_proj_bias": (24,),
        "h.0.attn.out_proj.weight": (8, 8),
        "h.0.attn.out_proj.bias": (8,),
        "h.0.attn.relative_position_bias_table": (169, 2),
        "h.0.ln.weight": (8,),
        "h.2.mlp.weight_g": (16, 1),
        "h.2.mlp.weight_v": (16, 8),
        "h.10.mlp.weight": (16, 8),
        "cls_token": (1, 1, 8),
        "pos_embed": (1, 17, 8),
      }
    ),
    {
      "h.0.attn.in_proj_weight": (1,),
      "h.0.attn.out_proj.weight": (1,),
      "h.2.mlp.weight_v": (1,),
      "h.10.mlp.weight": (1,),
    },
    {"h.0.attn.in_proj_bias": "h.0.attn.in_proj_weight", "h.0.attn.out_proj.bias": "h.0.attn.out_proj.weight"},
    {
      "wte.weight",
      "wpe.weight",
      "h.0.attn.relative_position_bias_table",
      "h.0.ln.weight",
      "h.2.mlp.weight_g",
      "cls_token",
      "pos_embed",
    },
  ),
  "haiku": Case(
    {
      module: flat(**leaves)
      for module, leaves in {
        "net/~/embed": {"embeddings": (100, 8)},
        "net/~/conv2_d": {"w": (3, 3, 3, 8), "b": (8,)},
        "net/~/batch_norm": {"scale": (1, 1, 1, 8), "offset": (1, 1, 1, 8)},
        "net/~/batch_norm/~/mean_ema": {"hidden": (1, 1, 1, 8), "average": (1, 1, 1, 8)},
        "net/~/layer_stack/layer_norm": {"scale": (4, 8), "offset": (4, 8)},
        "net/~/linear": {"w": (8, 2), "b": (2,)},
      }.items()
    },
    {"net/~/conv2_d/w": (0, 1, 2), "net/~/linear/w": (0,)},
    {"net/~/conv2_d/b": "net/~/conv2_d/w", "net/~/linear/b": "net/~/linear/w"},
    {
      "net/~/embed/embeddings",
      "net/~/batch_norm/scale",
      "net/~/batch_norm/offset",
      "net/~/batch_norm/~/mean_ema/hidden",
      "net/~/batch_norm/~/mean_ema/average",
      "net/~/layer_stack/layer_norm/scale",
      "net/~/layer_stack/layer_norm/offset",
    },
  ),
  "keras": Case(
    tree(
      **{
        "attention/query/kernel": (8, 2, 4),
        "attention/query/bias": (2, 4),
        "attention/output/kernel": (2, 4, 8),
        "attention/output/bias": (8,),
        "batch/gamma": (8,),
        "batch/beta": (8,),
        "batch/moving_mean": (8,),
        "batch/moving_variance": (8,),
        "embedding/embeddings": (100, 8),
        "lstm/kernel": (8, 16),
        "lstm/recurrent_kernel": (4, 16),
        "lstm/bias": (16,),
      }
    ),
    {"attention/output/kernel": (0, 1), "attention/query/kernel": (0, 1)}
    | {"lstm/kernel": (0,), "lstm/recurrent_kernel": (0,)},
    {
      "attention/query/bias": "attention/query/kernel",
      "attention/output/bias": "attention/output/kernel",
      "lstm/bias": "lstm/kernel",
    },
    {"batch/gamma", "batch/beta", "batch/moving_mean", "batch/moving_variance", "embedding/embeddings"},
  ),
  "Flax of Hugging Face": Case(
    tree(
      **{
        "embeddings/word_embeddings/embedding": (100, 8),
        "embeddings/LayerNorm/scale": (8,),
        "embeddings/LayerNorm/bias": (8,),
        "embeddings/patch_embeddings/projection/kernel": (16, 16, 3, 8),
        "embeddings/patch_embeddings/projection/bias": (8,),
        "embeddings/cls_token": (1, 1, 8),
        "embeddings/mask_token": (1, 1, 8),
        "embeddings/position_embeddings": (1, 17, 8),
        "encoder/layer/0/attention/self/value/kernel": (8, 8),
        "encoder/layer/0/attention/self/value/bias": (8,),
        "encoder/layer/0/input_embedding": (100, 8),
        "encoder/layer/0/embedding/kernel": (4, 4, 3, 8),
        "encoder/layer/0/relative_attention_bias/embedding": (32, 2),
      }
    ),
    {
      "embeddings/patch_embeddings/projection/kernel": (0, 1, 2),
      "encoder/layer/0/attention/self/value/kernel": (0,),
      "encoder/layer/0/embedding/kernel": (0, 1, 2),
    },
    {
      "embeddings/patch_embeddings/projection/bias": "embeddings/patch_embeddings/projection/kernel",
      "encoder/layer/0/attention/self/value/bias": "encoder/layer/0/attention/self/value/kernel",
    },
    {
      "embeddings/word_embeddings/embedding",
      "embeddings/LayerNorm/scale",
      "embeddings/LayerNorm/bias",
      "embeddings/cls_token",
      "embeddings/mask_token",
      "embeddings/position_embeddings",
      "encoder/layer/0/input_embedding",
      "encoder/layer/0/relative_attention_bias/embedding",
    },
  ),
  "haliax": Case(
    tree(**{"a/weight/0": (16, 8), "a/bias/0": (16,), "b/weight/0": (2, 16), "ln/weight/0": (16,), "ln/bias/0": (16,)}),
    {"a/weight/0": (1,), "b/weight/0": (1,)},
    {"a/bias/0": "a/weight/0"},
    {"ln/weight/0", "ln/bias/0"},
  ),
  "flowjax": Case(
    tree(**{"l/0/weight/args/1": (16, 8), "l/0/bias": (16,), "l/10/weight/args/1": (2, 16), "l/10/bias/args/0": (2,)}),
    {"l/0/weight/args/1": (1,), "l/10/weight/args/1": (1,)},
    {"l/0/bias": "l/0/weight/args/1", "l/10/bias/args/0": "l/10/weight/args/1"},
    set(),
  ),
  "penzai": Case(
    tree(
      **{"a/weights/value/data_array": (8, 16), "a/bias/value/data_array": (16,), "s/scale/value/data_array": (16,)}
    ),
    {"a/weights/value/data_array": (0,)},
    {"a/bias/value/data_array": "a/weights/value/data_array"},
    {"s/scale/value/data_array"},
  ),
  "several weights": Case(
    tree(
      **{"m/weight/0": (4, 8), "m/weight/1": (8, 8), "m/bias/0": (4,), "m/bias/1": (8,)}
      | {"n/kernel": (8, 4), "n/filter": (8, 4), "n/bias": (4,), "o/w1": (4, 4), "o/w2": (4, 4), "o/b": (4,)}
    ),
    {"m/weight/0": (1,), "m/weight/1": (1,), "n/filter": (0,), "n/kernel": (0,), "o/w1": (0,), "o/w2": (0,)},
    {"m/bias/0": "m/weight/0", "m/bias/1": "m/weight/1", "n/bias": "n/kernel"},
    {"o/b"},
  ),
  "lists": Case(
    [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(8, 16), (16,), (16,), (16, 4), (3,), (3, 16, 8), (16, 8)]]
    + [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(16, 8, 3), (3,), (3, 3), (3, 3), (3,)]],
    {"0": (0,), "3": (0,), "5": (0, 1), "7": (0, 1), "9": (0,), "10": (0,)},
    {"1": "0", "6": "5", "8": "7", "11": "10"},
    {"2", "4"},
  ),
  "layers by any name": Case(
    tree(
      **{
        "mean/0": (8, 4),
        "mean/1": (4,),
        "b/0": (4, 4),
        "b/1": (4,),
        "b/theta": (4, 4),
        "hidden": (4, 4),
        "value/head": (4, 1),
        "a/w1": (4, 4),
      }
      | {"a/b1": (4,), "a/W2": (4, 2), "a/b2": (2,), "kernel_scale": (4, 4), "lora_b": (4, 4), "v/value": (4, 2)}
    ),
    {"a/w1": (0,), "a/W2": (0,), "b/0": (0,), "b/theta": (0,), "hidden": (0,), "lora_b": (0,), "mean/0": (0,)}
    | {"v/value": (0,), "value/head": (0,)},
    {"a/b1": "a/w1", "a/b2": "a/W2", "mean/1": "mean/0", "b/1": "b/0"},
    {"kernel_scale"},
  ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_names_of_real_packages(case):
  structure = structure_from_params(case.params)
  leaves = structure.leaves()
  weights = sorted((facts for facts in leaves if facts.layer == facts.path), key=lambda facts: facts.depth)
  assert [facts.depth for facts in weights] == list(range(structure.num_layers))
  assert {facts.path: facts.contracting_axes for facts in weights} == case.weights
  biases = {facts.path: facts.layer for facts in leaves if facts.layer not in (None, facts.path)}
  assert biases == case.biases
  assert {facts.path for facts in leaves if facts.layer is None} == case.rest
  assert not any(facts.note for facts in leaves)


def test_natural_order_of_torch_names():
  names = ["h.10.mlp.weight", "h.9.mlp.weight", "h.9.attn.weight"]
  structure = structure_from_params(flat(**dict.fromkeys(names, (2, 2))))
  assert [facts.path for facts in structure.leaves()] == names[::-1]


def test_keys_and_counters_are_no_layers():
  params = {
    "kernel": jnp.ones((2, 3)),
    "mask": jnp.ones((2, 3), bool),
    "key": jax.random.key(0),
    "keys": jax.random.split(jax.random.key(0), (2, 2)),
    "raw": jax.random.PRNGKey(0)[None],
    "steps": jnp.zeros((2, 2), jnp.int32),
    "count": 3,
  }
  structure = structure_from_params(params)
  facts = {one.path: one for one in structure.leaves()}
  assert structure.num_layers == 1
  assert [path for path, one in facts.items() if one.layer] == ["kernel"]
  assert {path for path, one in facts.items() if not one.note} == {"kernel"}
  assert facts["key"].note == facts["keys"].note == "random key: no layer"
  assert facts["raw"].note == "uint32, not trained: no layer"
  assert "int32, not trained: no layer" in str(structure)
  assert decay_mask()(params) == {name: name == "kernel" for name in params}


@jax.tree_util.register_pytree_with_keys_class
class Module:
  """As an Equinox module that is not filtered: functions and other things are leaves."""

  def __init__(self, *fields):
    self.fields = fields

  def tree_flatten_with_keys(self):
    return [(jax.tree_util.GetAttrKey(name), field) for name, field in zip(NAMES, self.fields, strict=True)], None

  @classmethod
  def tree_unflatten(cls, _, fields):
    return cls(*fields)


NAMES = ["weight", "bias", "activation", "dtype", "name", "rate"]
UNFILTERED = Module(jnp.ones((3, 2)), jnp.ones(3), jax.nn.relu, jnp.float32, "dense", 0.5)


def test_leaves_that_are_no_arrays_have_no_facts():
  structure = structure_from_params(UNFILTERED)
  assert [facts.path for facts in structure.leaves()] == ["bias", "rate", "weight"]
  assert structure.facts.fields[2:5] == (None, None, None)
  traced = optax_ext.structure_from_model(lambda p, x: p.fields[0] @ x + p.fields[1], UNFILTERED, jnp.ones(2))
  for mask in (decay_mask(), decay_mask(structure), decay_mask(traced)):
    assert mask(UNFILTERED).fields == (True, False, False, False, False, False)


def test_steps_beside_leaves_that_are_no_arrays():
  """Equinox users differentiate the arrays, and may hand the whole module over as params."""
  two = [UNFILTERED, Module(jnp.ones((1, 3)), *UNFILTERED.fields[1:])]
  arrays = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else None, two)
  tx = optax_ext.scale_by_structure(optax_ext.ByDepth())
  updates, _ = tx.update(arrays, tx.init(arrays), two)
  assert [float(module.fields[0][0, 0]) for module in updates] == pytest.approx([2**0.5, 1])
  with pytest.warns(UserWarning, match=r"sees 1 layer in 6 leaves \('activation' of shape \(\), 'bias'"):
    tx.init(dict(zip(NAMES, UNFILTERED.fields, strict=True)))


@pytest.mark.parametrize("empty", [{}, {"a": object()}, {"a": None}, [], optax.MaskedNode(), {"f": jnp.tanh}])
def test_a_tree_without_arrays_is_an_error(empty):
  with pytest.raises(ValueError, match="structure_from_params was given a tree without any array"):
    structure_from_params(empty)
  with pytest.raises(ValueError, match="structure_from_model was given a tree without any array"):
    optax_ext.structure_from_model(lambda p, x: x, empty, jnp.ones(2))


@pytest.mark.parametrize("make", [optax_ext.caadam, optax_ext.nd_adam, optax_ext.exadam, optax_ext.adamnx])
def test_optimizers_take_trees_without_arrays(make):
  """`optax.tree.map_params` calls `init` with one."""
  params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 1))}}
  for empty in ({}, {"a": None}, optax.MaskedNode()):
    state = make(1e-3).init(empty)
    assert not jax.tree.leaves(make(1e-3).update(empty, state, empty)[0])
  assert decay_mask()({}) == {}
  tx = optax.chain(make(1e-3), optax.add_decayed_weights(0.1, decay_mask()))
  state = tx.init(params)
  optax.tree.map_params(tx, lambda leaf: leaf, state)


def test_tables_of_tokens_and_positions_decay_alike():
  names = ["token_embedding", "pos_embed", "position_embeddings", "wte", "positional_encoding", "embedding"]
  params = tree(**dict.fromkeys(names, (10, 8)), **{"wpe/weight": (10, 8)})
  hidden = tree(cls_token=(1, 1, 8), mask_token=(1, 8), class_embedding=(8,))
  assert all(jax.tree.leaves(decay_mask()(params)))
  assert not any(jax.tree.leaves(decay_mask()(hidden)))


def test_functions_raise_no_warning():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    facts = structure_from_params({"f": jnp.tanh, "w": jnp.ones((2, 2)), "class": np.float32}).facts
  assert (facts["f"], facts["class"]) == (None, None)
