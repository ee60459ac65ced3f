"""Layer-wise learning-rate decay: the published recipe's scales, found in the trace of any framework's model."""

import copy
import functools
import pickle
import re
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from plain_models import F32, experts, mlp_dict, nested_scan
from support import jitted

from optax_ext import (
  ByDepth,
  ByPath,
  LayerDecay,
  caadam,
  decay_mask,
  label_paths,
  scale_by_structure,
  structure_from_model,
  structure_from_params,
)
from optax_ext._common.paths import by_path

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of jax 0.7, which Equinox meets
  import equinox as eqx

N, WIDTH, PATCHES = 12, 8, 4
IMAGES = jax.ShapeDtypeStruct((2, 4, 4, 3), F32)


# The recipe


def get_layer_id(path, layers):
  """`get_layer_id_for_vit` of MAE's lr_decay.py, for paths with slashes."""
  if path in ("cls_token", "pos_embed"):
    return 0
  if path.startswith("patch_embed"):
    return 0
  if path.startswith("blocks"):
    return int(re.split("[/_]", path)[1]) + 1
  return layers


def published(path, shape, rate, scanned=False, blocks=N):
  """The learning rate's scale of one leaf of a ViT, as `param_groups_lrd` of MAE has it."""
  layers = blocks + 1
  scales = [rate ** (layers - i) for i in range(layers + 1)]
  if scanned and path.startswith("blocks"):
    each = [scales[get_layer_id(path.replace("blocks", f"blocks/{k}", 1), layers)] for k in range(blocks)]
    return np.reshape(each, (blocks, *[1] * (len(shape) - 1)))
  return scales[get_layer_id(path, layers)]


# The same ViT in each framework: an abstract model as structure_from_model takes it


def with_tokens(x, cls_token, pos_embed):
  x = jnp.concatenate([jnp.broadcast_to(cls_token, (*x.shape[:-2], 1, WIDTH)), x], -2)
  return x + pos_embed


class LinenBlock(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    x = x + nn.MultiHeadDotProductAttention(2, name="attn")(nn.LayerNorm(name="norm1")(x))
    y = nn.gelu(nn.Dense(2 * WIDTH, name="fc1")(nn.LayerNorm(name="norm2")(x)))
    return x + nn.Dense(WIDTH, name="fc2")(y), None


class LinenViT(nn.Module):
  scanned: bool = False
  blocks: int = N

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(WIDTH, (2, 2), (2, 2), name="patch_embed")(x).reshape(x.shape[0], PATCHES, WIDTH)
    cls_token = self.param("cls_token", nn.initializers.normal(), (1, 1, WIDTH))
    x = with_tokens(x, cls_token, self.param("pos_embed", nn.initializers.normal(), (1, PATCHES + 1, WIDTH)))
    if self.scanned:
      stack = nn.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.blocks)
      x, _ = stack(name="blocks")(x, None)
    else:
      for k in range(self.blocks):
        x, _ = LinenBlock(name=f"blocks_{k}")(x)
    return nn.Dense(3, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


def vit_linen(scanned):
  model = LinenViT(scanned)
  return model.apply, jax.eval_shape(model.init, jax.random.key(0), IMAGES), IMAGES


class NnxBlock(nnx.Module):
  def __init__(self, rngs):
    self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
    self.attn = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
    self.fc1, self.fc2 = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs), nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

  def __call__(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x))))


class NnxViT(nnx.Module):
  def __init__(self, rngs, scanned=False, blocks=N):
    self.patch_embed = nnx.Conv(3, WIDTH, (2, 2), (2, 2), rngs=rngs)
    self.cls_token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
    self.pos_embed = nnx.Param(jnp.zeros((1, PATCHES + 1, WIDTH)))
    if scanned:
      self.blocks = nnx.split_rngs(splits=blocks)(nnx.vmap(NnxBlock))(rngs)
    else:
      self.blocks = nnx.List([NnxBlock(rngs) for _ in range(blocks)])
    self.norm, self.head = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.Linear(WIDTH, 3, rngs=rngs)

  def __call__(self, x):
    x = self.patch_embed(x).reshape(x.shape[0], PATCHES, WIDTH)
    x = with_tokens(x, self.cls_token[...], self.pos_embed[...])
    if isinstance(self.blocks, NnxBlock):
      x = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
    else:
      for block in self.blocks:
        x = block(x)
    return self.head(self.norm(x)[:, 0])


def vit_nnx(scanned):
  graph, params, rest = nnx.split(nnx.eval_shape(lambda: NnxViT(nnx.Rngs(0), scanned)), nnx.Param, ...)
  return lambda params, x: nnx.merge(graph, params, rest, copy=True)(x), params, IMAGES


class EquinoxBlock(eqx.Module):
  norm1: eqx.nn.LayerNorm
  norm2: eqx.nn.LayerNorm
  attn: eqx.nn.MultiheadAttention
  fc1: eqx.nn.Linear
  fc2: eqx.nn.Linear

  def __init__(self, key):
    keys = jax.random.split(key, 3)
    self.norm1, self.norm2 = eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH)
    self.attn = eqx.nn.MultiheadAttention(2, WIDTH, key=keys[0])
    self.fc1 = eqx.nn.Linear(WIDTH, 2 * WIDTH, key=keys[1])
    self.fc2 = eqx.nn.Linear(2 * WIDTH, WIDTH, key=keys[2])

  def __call__(self, x):
    y = jax.vmap(self.norm1)(x)
    x = x + self.attn(y, y, y)
    return x + jax.vmap(self.fc2)(jax.nn.gelu(jax.vmap(self.fc1)(jax.vmap(self.norm2)(x))))


class EquinoxViT(eqx.Module):
  patch_embed: eqx.nn.Conv2d
  cls_token: jax.Array
  pos_embed: jax.Array
  blocks: list[EquinoxBlock] | EquinoxBlock
  norm: eqx.nn.LayerNorm
  head: eqx.nn.Linear

  def __init__(self, key, scanned=False, blocks=N):
    first, last, *keys = jax.random.split(key, 2 + blocks)
    self.patch_embed = eqx.nn.Conv2d(3, WIDTH, 2, 2, key=first)
    self.cls_token, self.pos_embed = jnp.zeros((1, WIDTH)), jnp.zeros((PATCHES + 1, WIDTH))
    self.blocks = eqx.filter_vmap(EquinoxBlock)(jnp.stack(keys)) if scanned else [EquinoxBlock(key) for key in keys]
    self.norm, self.head = eqx.nn.LayerNorm(WIDTH), eqx.nn.Linear(WIDTH, 3, key=last)

  def __call__(self, x):
    x = self.patch_embed(jnp.moveaxis(x, -1, 0)).reshape(WIDTH, PATCHES).T
    x = with_tokens(x, self.cls_token, self.pos_embed)
    if isinstance(self.blocks, EquinoxBlock):
      stack, static = eqx.partition(self.blocks, eqx.is_array)
      x, _ = lax.scan(lambda x, block: (eqx.combine(block, static)(x), None), x, stack)
    else:
      for block in self.blocks:
        x = block(x)
    return self.head(self.norm(x[0]))


def vit_equinox(scanned):
  model = eqx.filter_eval_shape(EquinoxViT, jax.random.key(0), scanned)
  return lambda model, x: jax.vmap(model)(x), model, IMAGES


VITS = [vit_linen, vit_nnx, vit_equinox]


@functools.cache
def structure_of(build, scanned=False):
  return structure_from_model(*build(scanned))


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("build", VITS)
def test_scales_are_those_of_the_published_recipe(build, scanned):
  structure = structure_of(build, scanned)
  scales, facts = by_path(LayerDecay(0.75).scales(structure)), structure.by_path()
  assert scales.keys() == facts.keys()
  assert {path.split("/")[0].split("_")[0] for path in scales} == {"patch", "cls", "pos", "blocks", "norm", "head"}
  for path, scale in scales.items():
    np.testing.assert_array_equal(scale, published(path, facts[path].shape, 0.75, scanned), err_msg=path)


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_the_table_gives_the_reasons(scanned):
  structure = structure_of(vit_linen, scanned)
  rows = {line.split()[0]: line for line in structure.table(LayerDecay(0.75)).splitlines()}
  words = {"patch_embed/kernel": "before the blocks", "pos_embed": "before the blocks", "head/bias": "after the blocks"}
  words |= {"blocks/norm1/scale": "blocks 1 to 12 of 12"} if scanned else {"blocks_2/norm1/scale": "block 3 of 12"}
  for path, reason in words.items():
    assert rows[path].endswith(f"  {reason}")
  both = (ByDepth() * LayerDecay(0.75)).reasons(structure)
  assert both == LayerDecay(0.75).reasons(structure)


# Which blocks there are, and in which order: small models in plain jax


def numbers(apply, params, *inputs, blocks=None):
  """Path -> i, read off the scales of LayerDecay(1/2), which are 2^(i-N-1); and N, read off its reasons."""
  structure, rule = structure_from_model(apply, shaped(params), *shaped(inputs)), LayerDecay(0.5, blocks)
  (n,) = {int(words.split(" of ")[1]) for words in rule.reasons(structure).values() if " of " in words}
  return {p: np.squeeze(np.log2(scale) + n + 1).tolist() for p, scale in by_path(rule.scales(structure)).items()}, n


def shaped(tree):
  """Shapes for a tree of arrays, of shapes as tuples in dicts, or of both."""
  is_leaf = lambda node: isinstance(node, tuple) and all(isinstance(size, int) for size in node)
  struct = lambda leaf: jax.ShapeDtypeStruct(
    leaf if isinstance(leaf, tuple) else leaf.shape, getattr(leaf, "dtype", F32)
  )
  return jax.tree.map(struct, tree, is_leaf=is_leaf)


D = 4
X = (2, 3)
BLOCK = {"up": (D, 6), "bias": (6,), "scale": (6,), "down": (6, D)}


def run(block, x):
  return x + (jnp.tanh(x @ block["up"] + block["bias"]) * block["scale"]) @ block["down"]


def trunk(**more):
  return {"embed": (3, D), "blocks": [BLOCK] * 3, "norm": (D,), "head": (D, 2), **more}


def in_blocks(*ks, family="blocks"):
  return {f"{family}/{name}/{leaf}": k for name, k in enumerate(ks) for leaf in BLOCK}


def stacked(tree, n=3):
  return {name: (n, *shape) for name, shape in tree.items()}


def test_blocks_are_ordered_by_depth_and_not_by_name():
  def apply(p, x):
    x = x @ p["embed"]
    for block in p["blocks"][::-1]:
      x = run(block, x)
    return (x * p["norm"]) @ p["head"]

  found, n = numbers(apply, trunk(), X)
  assert found == in_blocks(3, 2, 1) | {"embed": 0, "norm": 4, "head": 4}
  assert n == 3


@pytest.mark.parametrize("kind", ["weight", "scale"])
def test_a_leaf_outside_counts_the_blocks_that_begin_before_it(kind):
  """Of three blocks with the depths 1 and 2, 3 and 4, 5 and 6; each leaf meets what comes after so many products."""
  before = dict(zip("abcdefgh", range(8), strict=True))

  def apply(p, x):
    values = [x, x := x @ p["embed"]]
    for block in p["blocks"]:
      values += [jnp.tanh(x @ block["up"]), x := run(block, x)]
    side = lambda leaf, value: value @ leaf if kind == "weight" else value * leaf
    return [x @ p["head"], *(side(p["side"][name], values[depth]) for name, depth in before.items())]

  sizes = {name: 3 if depth == 0 else 6 if depth in (2, 4, 6) else D for name, depth in before.items()}
  side = {name: (size, 1) if kind == "weight" else (size,) for name, size in sizes.items()}
  found, _ = numbers(apply, {"embed": (3, D), "blocks": [BLOCK] * 3, "head": (D, 2), "side": side}, X)
  assert [found[f"side/{name}"] for name in before] == [0, 0, 1, 1, 2, 2, 3, 4]


def test_embeddings_that_are_looked_up_come_before_the_blocks():
  """No product is before the first block."""

  def apply(p, ids):
    x = p["embed"][ids] + p["pos"]
    for block in p["blocks"]:
      x = run(block, x)
    return (x * p["norm"]) @ p["embed"].T

  params = {"embed": (9, D), "pos": (2, D), "blocks": [BLOCK] * 3, "norm": (D,)}
  found, _ = numbers(apply, params, jnp.zeros(2, jnp.int32))
  assert found == in_blocks(1, 2, 3) | {"embed": 0, "pos": 0, "norm": 4}


def test_the_outermost_number_counts():
  """Equal layers inside of a block are parts of it."""

  def apply(p, x):
    for block in p["blocks"]:
      for layer in block:
        x = run(layer, x)
    return x @ p["head"]

  found, n = numbers(apply, {"blocks": [[BLOCK] * 2] * 3, "head": (D, 2)}, (2, D))
  inside = [in_blocks(k + 1, k + 1, family=f"blocks/{k}") for k in range(3)]
  assert found == inside[0] | inside[1] | inside[2] | {"head": 4}
  assert n == 3


@pytest.mark.parametrize("name", ["Block_{}", "h{}", "transformer.layers.{}.w", "w{}"])
def test_a_number_may_end_any_part_of_a_path(name):
  """Eleven of them: the order is not that of strings."""
  names = [name.format(k) for k in range(11)]

  def apply(p, x):
    for name in names:
      x = jnp.tanh(x @ p[name])
    return x @ p["head"]

  found, n = numbers(apply, {**dict.fromkeys(names, (3, 3)), "head": (3, 2)}, X)
  assert found == {name: k + 1 for k, name in enumerate(names)} | {"head": 12}
  assert n == 11


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_a_decoders_blocks_come_after_an_encoders(scanned):
  """Both have three blocks; what is between them counts the encoder's."""

  def over(blocks, x):
    if scanned:
      return lax.scan(lambda x, block: (run(block, x), None), x, blocks)[0]
    for block in blocks:
      x = run(block, x)
    return x

  def apply(p, x):
    x = over(p["decoder"], over(p["encoder"], x @ p["embed"]) * p["norm"] @ p["mix"] + p["pos"])
    return x @ p["head"]

  blocks = stacked(BLOCK) if scanned else [BLOCK] * 3
  params = {"embed": (3, D), "decoder": blocks, "encoder": blocks, "head": (D, 2)}
  found, n = numbers(apply, params | {"norm": (D,), "mix": (D, D), "pos": (D,)}, X)
  want = {"embed": 0, "norm": 3, "mix": 3, "pos": 3, "head": 7}
  if scanned:
    want |= {f"encoder/{leaf}": [1, 2, 3] for leaf in BLOCK} | {f"decoder/{leaf}": [4, 5, 6] for leaf in BLOCK}
  else:
    want |= in_blocks(1, 2, 3, family="encoder") | in_blocks(4, 5, 6, family="decoder")
  assert found == want
  assert n == 6


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_what_all_blocks_read_does_not_change_their_order(scanned):
  """A decoder's cross-attention, an adaptive norm: in each block a product that comes before all blocks."""

  def conditioned(block, x, context):
    return run(block, x) + (context @ block["cross"]) @ block["out"]

  def over(f, blocks, x):
    if scanned:
      return lax.scan(lambda x, block: (f(block, x), None), x, blocks)[0]
    for block in blocks:
      x = f(block, x)
    return x

  def apply(p, x, y):
    context = over(run, p["encoder"], x @ p["embed"]) * p["middle"]
    x = over(lambda block, x: conditioned(block, x, context), p["decoder"], y @ p["start"])
    return (x * p["norm"]) @ p["head"]

  more = BLOCK | {"cross": (D, 5), "out": (5, D)}
  params = {"decoder": stacked(more), "encoder": stacked(BLOCK)} if scanned else {}
  params = params or {"decoder": [more] * 3, "encoder": [BLOCK] * 3}
  found, n = numbers(
    apply, params | {"embed": (3, D), "start": (3, D), "middle": (D,), "norm": (D,), "head": (D, 2)}, X, X
  )
  for k in range(3):
    of = lambda path, k=k: found[path][k] if scanned else found[path.replace("/", f"/{k}/")]
    assert {of(f"encoder/{leaf}") for leaf in BLOCK} == {1 + k}
    assert {of(f"decoder/{leaf}") for leaf in more} == {4 + k}
  assert [found[path] for path in ("embed", "start", "middle", "norm", "head")] == [0, 0, 3, 7, 7]
  assert n == 6


def test_a_number_inside_of_a_name_is_none_of_a_block():
  params = {"conv1a": (3, 3), "conv2a": (3, 3)}
  with pytest.raises(ValueError, match="finds no blocks"):
    numbers(lambda p, x: jnp.tanh(x @ p["conv1a"]) @ p["conv2a"], params, X)


def test_equal_hidden_layers_are_blocks():
  """Input and output of an MLP are none, as their weights have other shapes."""

  class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
      for width in (5, 5, 5, 5):
        x = nn.relu(nn.Dense(width)(x))
      return nn.Dense(2)(x)

  params = jax.eval_shape(MLP().init, jax.random.key(0), jnp.zeros(X))
  found, n = numbers(MLP().apply, params, jnp.zeros(X))
  assert found == {f"Dense_{k}/{leaf}": k for k in range(5) for leaf in ("kernel", "bias")}
  assert n == 3


def test_a_bias_is_in_the_block_of_its_weight():
  """Also where its name is in no block."""
  params = {"w0": (3, 3), "w1": (3, 3), "b0": (3,), "b1": (3,), "last": (3, 2)}

  def apply(p, x):
    return jnp.tanh(jnp.tanh(x @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]) @ p["last"]

  assert numbers(apply, params, X)[0] == {"w0": 1, "w1": 2, "b0": 1, "b1": 2, "last": 3}


def test_one_block_may_have_more_than_the_others():
  """T5 has its table of relative positions in the first block, a network of experts its dense layers."""
  first = {"up": (D, 9), "bias": (9,), "scale": (9,), "down": (9, D), "more": (D, D)}
  blocks = [BLOCK | {"more": (D, D)}, BLOCK, first]

  def apply(p, x):
    x = x @ p["embed"]
    for block in p["blocks"]:
      x = run(block, x @ block["more"] if "more" in block else x)
    return (x * p["norm"]) @ p["head"]

  found, n = numbers(apply, trunk(blocks=blocks), X)
  assert found == in_blocks(1, 2, 3) | {"embed": 0, "norm": 4, "head": 4, "blocks/0/more": 1, "blocks/2/more": 3}
  assert n == 3


def test_modules_side_by_side_are_no_blocks():
  """Heads of several tasks; members of an ensemble, whose blocks of the same depth count as one."""

  def apply(p, x):
    def member(blocks, x):
      for block in blocks:
        x = run(block, x)
      return x

    x = x @ p["embed"]
    x = (member(p["members"][0], x) + member(p["members"][1], x)) * p["norm"]
    return [x @ head for head in p["heads"]]

  found, n = numbers(apply, {"embed": (3, D), "members": [[BLOCK] * 2] * 2, "norm": (D,), "heads": [(D, 2)] * 3}, X)
  want = in_blocks(1, 2, family="members/0") | in_blocks(1, 2, family="members/1")
  assert found == want | {"embed": 0, "norm": 3, "heads/0": 3, "heads/1": 3, "heads/2": 3}
  assert n == 2


@pytest.mark.parametrize("blocks", [None, "e"], ids=["found", "named"])
def test_each_iteration_of_nested_scans_is_a_block(blocks):
  """Groups of three layers and one more; the inner loop runs backwards."""
  model = nested_scan()
  found, n = numbers(model.apply, model.params, *model.inputs, blocks=blocks)
  assert found == {"inner": [[3, 2, 1], [7, 6, 5]], "outer": [4, 8]}
  assert n == 8


def test_copies_are_no_blocks():
  """An ensemble's members and experts are stacked along an axis that counts no layers: a number serves all."""

  def apply(p, x):
    def net(p, x):
      x = x @ p["embed"]
      for block in p["blocks"]:
        x = run(block, x)
      return x @ p["head"]

    return jax.vmap(net, (0, None))(p, x)

  params = {"embed": (5, 3, D), "blocks": [stacked(BLOCK, 5)] * 2, "head": (5, D, 2)}
  found, n = numbers(apply, params, X)
  assert found == in_blocks(1, 2) | {"embed": 0, "head": 3}
  assert n == 2
  model = experts()
  with pytest.raises(ValueError, match="finds no blocks"):
    numbers(model.apply, model.params, *model.inputs)


# Blocks that are named


class Staged(nn.Module):
  """Two stages of unequal blocks, and a convolution between them."""

  @nn.compact
  def __call__(self, x):
    conv = lambda width, name: nn.Conv(width, (3, 3), name=name)
    x = conv(4, "stem")(x)
    x = nn.relu(conv(4, "stages/0/blocks/0")(x))
    x = conv(6, "downsample")(nn.LayerNorm(name="norm0")(x))
    x = nn.relu(conv(8, "stages/1/blocks/0")(x))
    x = nn.relu(conv(9, "stages/1/blocks/1")(x))
    return nn.Dense(2, name="head")(nn.LayerNorm(name="norm")(x).mean((1, 2)))


def test_blocks_of_a_staged_network_are_named():
  params = jax.eval_shape(Staged().init, jax.random.key(0), IMAGES)
  with pytest.raises(ValueError, match=r'finds no blocks, .* name them by a regular expression, as blocks=r"stages'):
    numbers(Staged().apply, params, IMAGES)
  found, n = numbers(Staged().apply, params, IMAGES, blocks=r"stages/\d+/blocks/\d+")
  blocks = {"stages/0/blocks/0": 1, "stages/1/blocks/0": 2, "stages/1/blocks/1": 3}
  want = {"stem": 0, "downsample": 1, "head": 4, **blocks}
  norms = {"norm0/scale": 1, "norm0/bias": 1, "norm/scale": 4, "norm/bias": 4}
  assert found == {f"{module}/{leaf}": k for module, k in want.items() for leaf in ("kernel", "bias")} | norms
  assert n == 3


def test_a_number_alone_joins_what_has_no_module_in_common():
  """Block k is a layer of each of two lists."""

  def apply(p, x):
    for attention, mlp in zip(p["attention"], p["mlp"], strict=True):
      x = jnp.tanh(jnp.tanh(x @ attention) @ mlp)
    return x @ p["head"]

  params = {"attention": [(3, 5)] * 3, "mlp": [(5, 3)] * 3, "head": (3, 2)}
  apart, n = numbers(apply, params, X)
  assert (apart["attention/1"], apart["mlp/1"], n) == (3, 4, 6)
  joined, n = numbers(apply, params, X, blocks=r"\d+")
  assert joined == {f"{name}/{k}": k + 1 for name in ("attention", "mlp") for k in range(3)} | {"head": 4}
  assert n == 3


def test_iterations_stay_parts_of_what_is_named():
  """A group of two layers is one iteration, and each of its layers a block where it is named."""

  def apply(p, x):
    def group(x, layers):
      return run(layers["b"], run(layers["a"], x)), None

    return lax.scan(group, x @ p["embed"], p["groups"])[0] @ p["head"]

  params = {"embed": (3, D), "groups": {"a": stacked(BLOCK), "b": stacked(BLOCK)}, "head": (D, 2)}
  for blocks, (a, b) in {None: ([1, 2, 3], [1, 2, 3]), "groups/.": ([1, 3, 5], [2, 4, 6])}.items():
    found, n = numbers(apply, params, X, blocks=blocks)
    assert found["groups/a/up"] == found["groups/a/scale"] == a
    assert found["groups/b/up"] == found["groups/b/scale"] == b
    assert (found["embed"], found["head"], n) == (0, n + 1, b[-1])


# Errors


def test_names_do_not_tell_the_order_of_blocks():
  structure = structure_from_params({f"block_{k}": {"kernel": jnp.ones((2, 2))} for k in range(3)})
  for ask in (LayerDecay(0.75).scales, LayerDecay(0.75).reasons):
    with pytest.raises(ValueError, match="needs a structure from structure_from_model"):
      ask(structure)


def test_no_blocks():
  model = mlp_dict()
  structure = structure_from_model(model.apply, model.params, *model.inputs)
  with pytest.raises(ValueError, match="LayerDecay finds no blocks"):
    LayerDecay(0.75).scales(structure)
  with pytest.raises(ValueError, match=r"blocks='layer_\\\\d' is found in no path .* leaves are 'a', 'b', 'c', 'd'"):
    LayerDecay(0.75, r"layer_\d").scales(structure)


@pytest.mark.parametrize(
  ("arguments", "error", "message"),
  [
    ((0.0,), ValueError, r"rate must be a number in \(0, 1\]"),
    ((1.5,), ValueError, r"rate must be a number in \(0, 1\]"),
    (("0.75",), TypeError, r"rate must be a number in \(0, 1\]"),
    ((0.75, ["blocks"]), TypeError, r"blocks must be a regular expression, .* but was \['blocks'\]"),
    ((0.75, 12), TypeError, "blocks must be a regular expression"),
  ],
)
def test_bad_arguments(arguments, error, message):
  with pytest.raises(error, match=message):
    LayerDecay(*arguments)


def test_the_rule_is_a_value():
  rule = LayerDecay(0.75, "h/.")
  assert pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule) == rule != LayerDecay(0.75)
  assert not callable(rule)


# In a chain


@functools.cache
def small(scanned=False, dtype=F32):
  """A structure, and parameters and gradients that are all 1."""
  model = LinenViT(scanned, blocks=3)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
  return structure_from_model(model.apply, shapes, IMAGES), jax.tree.map(
    lambda leaf: jnp.ones(leaf.shape, dtype), shapes
  )


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_products_with_other_rules(scanned):
  structure, _ = small(scanned)
  rules = ByDepth(), LayerDecay(0.75), ByDepth() * LayerDecay(0.75), LayerDecay(0.75) * ByDepth()
  depth, decay, *both = (by_path(rule.scales(structure)) for rule in rules)
  for path in depth:
    for product in both:
      np.testing.assert_allclose(product[path], depth[path] * decay[path], rtol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("make", ["chain", "caadam"])
def test_steps(make, scanned):
  """Adam's first step is the learning rate: it is scaled, in the parameters' dtype, compiled as well."""
  dtype = jnp.bfloat16 if scanned == (make == "chain") else F32
  structure, params = small(scanned, dtype)
  rule = LayerDecay(0.75)
  if make == "chain":
    tx = optax.chain(optax.scale_by_adam(), scale_by_structure(rule, structure), optax.scale_by_learning_rate(1e-3))
  else:
    tx = caadam(1e-3, rule=rule, structure=structure)
  step = lambda zeros: optax.apply_updates(zeros, tx.update(ones(zeros), tx.init(zeros), zeros)[0])
  got, scales = jitted(step)(jax.tree.map(jnp.zeros_like, params)), by_path(rule.scales(structure))
  for path, leaf in by_path(got).items():
    assert leaf.dtype == dtype
    want = np.broadcast_to(-1e-3 * scales[path], leaf.shape)
    np.testing.assert_allclose(np.asarray(leaf, np.float32), want, rtol=1e-5 if dtype == F32 else 1e-2, err_msg=path)


def test_the_rate_may_be_traced():
  structure, grads = small()
  tx = lambda rate: scale_by_structure(LayerDecay(rate), structure)
  step = jitted(lambda rate: tx(rate).update(grads, optax.EmptyState())[0])
  want = tx(0.75).update(grads, optax.EmptyState())[0]
  chex.assert_trees_all_close(step(jnp.float32(0.75)), want, rtol=1e-6)


# Recipes of the documentation: frozen embeddings, layer-wise decay, a head that learns ten times as fast


def check_recipe(before, after):
  """One step of BEiT's AdamW from gradients of 1: the rate of its group scales step and decay."""
  before, after = by_path(before), by_path(after)
  for path, param in before.items():
    trained = not path.startswith(("patch_embed", "cls_token", "pos_embed"))
    decay = 0.05 if path.endswith(("kernel", "weight")) and "norm" not in path else 0.0
    rate = 1e-3 * published(path, param.shape, 0.75, blocks=3) * (10 if path.startswith("head") else 1)
    want = -rate * (1 + decay * np.asarray(param)) * trained
    np.testing.assert_allclose(after[path] - param, want, rtol=1e-3, atol=1e-7, err_msg=path)


def stepped(tx, params):
  return jitted(lambda params: optax.apply_updates(params, tx.update(ones(params), tx.init(params), params)[0]))(params)


def ones(shapes):
  return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf, shapes)


def test_recipe_linen():
  model, images = LinenViT(blocks=3), IMAGES
  variables = ones(jax.eval_shape(model.init, jax.random.key(0), images))

  structure = structure_from_model(model.apply, variables, images)
  adamw = optax.adamw(1e-3, weight_decay=0.05, mask=decay_mask(structure))
  scaled = scale_by_structure(LayerDecay(0.75) * ByPath({"^head/": 10.0}), structure)
  groups = {True: optax.set_to_zero(), False: optax.chain(adamw, scaled)}
  tx = optax.partition(groups, label_paths("^(patch_embed|cls_token|pos_embed)"))

  check_recipe(variables, stepped(tx, variables))


@pytest.mark.heavy
def test_recipe_nnx():
  graph, state = nnx.split(nnx.eval_shape(lambda: NnxViT(nnx.Rngs(0), blocks=3)))
  model, images = nnx.merge(graph, ones(state)), IMAGES

  structure = structure_from_model(NnxViT.__call__, model, images)
  adamw = optax.adamw(1e-3, weight_decay=0.05, mask=decay_mask(structure))
  scaled = scale_by_structure(LayerDecay(0.75) * ByPath({"^head/": 10.0}), structure)
  groups = {True: optax.set_to_zero(), False: optax.chain(adamw, scaled)}
  tx = optax.partition(groups, label_paths("^(patch_embed|cls_token|pos_embed)"))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

  before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
  nnx.jit(lambda optimizer, model: optimizer.update(model, ones(before)))(optimizer, model)
  check_recipe(before, nnx.state(model, nnx.Param))


@pytest.mark.heavy
def test_recipe_equinox():
  model, images = ones(eqx.filter_eval_shape(EquinoxViT, jax.random.key(0), blocks=3)), IMAGES

  structure = structure_from_model(lambda model, images: jax.vmap(model)(images), model, images)
  adamw = optax.adamw(1e-3, weight_decay=0.05, mask=decay_mask(structure))
  scaled = scale_by_structure(LayerDecay(0.75) * ByPath({"^head/": 10.0}), structure)
  groups = {True: optax.set_to_zero(), False: optax.chain(adamw, scaled)}
  tx = optax.partition(groups, label_paths("^(patch_embed|cls_token|pos_embed)"))
  params = eqx.filter(model, eqx.is_array)

  check_recipe(params, stepped(tx, params))
