"""Training in Flax NNX, Flax linen, Equinox and plain trees: one leaf, one name, one step, whatever holds the leaf."""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import jitted

import optax_ext
from optax_ext import ByDepth, decay_mask, label_paths
from optax_ext._common.paths import by_path, natural_key

flax = pytest.importorskip("flax")
nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
eqx = pytest.importorskip("equinox")
TrainState = pytest.importorskip("flax.training.train_state").TrainState

LAYERS, WIDTH = 13, 3  # 13, so that Dense_10 comes before Dense_2 in a linen tree
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, WIDTH)), jnp.float32)
Y = jnp.sin(X)

OPTIMIZERS = {
  "exadam": optax_ext.exadam(1e-3),
  "adamnx": optax_ext.adamnx(1e-2, mask=decay_mask()),
  "caadam": optax_ext.caadam(1e-2, rule=ByDepth(15.0)),
  "nd_adam": optax_ext.nd_adam(1e-3),
}
each_optimizer = pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)


# models: 13 layers each, x + tanh(W x + b)


class LinenNet(nn.Module):
  layer: Any = nn.Dense

  @nn.compact
  def __call__(self, x):
    for _ in range(LAYERS):
      x = x + jnp.tanh(self.layer(WIDTH)(x))
    return x


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(LAYERS)])

  def __call__(self, x):
    for layer in self.layers:
      x = x + jnp.tanh(layer(x))
    return x


class EquinoxNet(eqx.Module):
  layers: list
  activation: Any  # a leaf that is no array

  def __init__(self):
    self.activation = jnp.tanh
    self.layers = [eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in jax.random.split(jax.random.key(0), LAYERS)]

  def __call__(self, x):
    for layer in self.layers:
      x = x + self.activation(layer(x))
    return x


class Layer(NamedTuple):
  kernel: Any
  bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
  layers: Any


def partitioned(box):
  return functools.partial(
    nn.Dense,
    kernel_init=box(nn.initializers.lecun_normal(), ("embed", "mlp")),
    bias_init=box(nn.initializers.zeros_init(), ("mlp",)),
  )


def linen_params(layer=nn.Dense):
  return LinenNet(layer).init(jax.random.key(0), X)


def plain_layers():
  params = linen_params()["params"]
  return [Layer(params[f"Dense_{i}"]["kernel"], params[f"Dense_{i}"]["bias"]) for i in range(LAYERS)]


def nnx_net():
  return NnxNet(nnx.Rngs(0))


TREES = {
  "linen": linen_params,
  "linen frozen": lambda: flax.core.freeze(linen_params()),
  "linen params": lambda: linen_params()["params"],
  "linen partitioned": lambda: linen_params(partitioned(nn.with_partitioning)),
  "linen logically partitioned": lambda: linen_params(partitioned(nn.with_logical_partitioning)),
  "nnx state": lambda: nnx.state(nnx_net(), nnx.Param),
  "nnx pure dict": lambda: nnx.to_pure_dict(nnx.state(nnx_net(), nnx.Param)),
  "nnx module": lambda: nnx_net(),
  "equinox": lambda: eqx.filter(EquinoxNet(), eqx.is_inexact_array),
  "named tuples in a list": plain_layers,
  "tuples": lambda: tuple(map(tuple, plain_layers())),
  "dataclass": lambda: Net([layer._asdict() for layer in plain_layers()]),
}


@pytest.mark.heavy
@pytest.mark.parametrize("build", TREES.values(), ids=TREES)
def test_thirteen_layers_have_their_names_and_depths_in_every_tree(build):
  """A tree of any kind is trained as the dict from path to leaf is; its layers are counted, not sorted by letters."""
  params = build()
  structure = optax_ext.structure_from_params(params)
  assert structure.num_layers == LAYERS
  weights = sorted((f for f in structure.leaves() if f.layer == f.path), key=lambda facts: facts.depth)
  assert [int(re.search(r"\d+", facts.path)[0]) for facts in weights] == list(range(LAYERS))

  flat = by_path(params)
  assert set(flat) == set(by_path(nn.unbox(params)))
  assert not any("value" in path or path.startswith("params") for path in flat)
  for tx in (OPTIMIZERS["caadam"], OPTIMIZERS["nd_adam"]):
    updates, state = tx.update(params, tx.init(params), params)
    want, want_state = tx.update(flat, tx.init(flat), flat)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    got = by_path(updates)
    assert set(got) == set(want)
    for path, update in want.items():
      np.testing.assert_array_equal(got[path], update, err_msg=path)
    mu = by_path(optax.tree.get(state, "mu"))
    for path, mean in optax.tree.get(want_state, "mu").items():
      np.testing.assert_array_equal(mu[path], mean)
  scales = by_path(ByDepth().scales(structure))
  np.testing.assert_allclose([scales[f.path] for f in weights], 2 ** (np.arange(LAYERS)[::-1] / LAYERS))


# training, the frameworks' own way, against a plain dict


def plain_training(apply, params, tx, steps=3):
  """Of the dict from path to leaf, by the model as a function of that dict."""
  state = tx.init(params)

  @jitted
  def step(params, state):
    grads = jax.grad(lambda params: jnp.mean((apply(params, X) - Y) ** 2))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    params, state = step(params, state)
  return params


def residual(params, x):
  """The nets above, of the dict from path to leaf."""
  names = sorted(params, key=natural_key)
  for bias, weight in zip(names[::2], names[1::2], strict=True):
    kernel = params[weight].T if weight.endswith("/weight") else params[weight]
    x = x + jnp.tanh(x @ kernel + params[bias])
  return x


def agree(got, want):
  """To 5e-5, where three steps of 0.01 were taken: the first divide gradients, small ones too, by their own size."""
  assert set(got) == set(want)
  for path, leaf in want.items():
    np.testing.assert_allclose(got[path], leaf, rtol=0, atol=5e-5, err_msg=path)


def nnx_step(model, optimizer, x, y):
  loss = lambda model: jnp.mean((model(x) - y) ** 2)
  loss, grads = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, optimizer.wrt))(model)
  optimizer.update(model, grads)
  return loss


@pytest.mark.heavy
@each_optimizer
def test_nnx_optimizer(tx):
  model = nnx_net()
  want = plain_training(residual, by_path(nnx.state(model, nnx.Param)), tx)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  step = nnx.jit(nnx_step)
  for _ in range(3):
    step(model, optimizer, X, Y)
  agree(by_path(nnx.state(model, nnx.Param)), want)


@pytest.mark.heavy
@each_optimizer
def test_linen_train_state(tx):
  model, variables = LinenNet(), linen_params()
  want = plain_training(residual, by_path(variables), tx)
  state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)

  @jitted
  def step(state):
    loss = lambda params: jnp.mean((state.apply_fn({"params": params}, X) - Y) ** 2)
    return state.apply_gradients(grads=jax.grad(loss)(state.params))

  for _ in range(3):
    state = step(state)
  agree(by_path(state.params), want)


@pytest.mark.heavy
@each_optimizer
def test_linen_partitioned_parameters(tx):
  """Boxed to the end; and, as with meshes, boxed until the state's specs are read and plain from then on."""
  model = LinenNet(partitioned(nn.with_partitioning))
  params = linen_params(partitioned(nn.with_partitioning))["params"]
  want = plain_training(residual, by_path(params), tx)
  loss = lambda params: jnp.mean((model.apply({"params": params}, X) - Y) ** 2)

  @jitted
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  specs = by_path(optax.tree.get(nn.get_partition_spec(state), "mu"), lambda node: isinstance(node, jax.P))
  assert specs["Dense_10/kernel"] == jax.P("embed", "mlp")
  for begin in ((params, state), nn.unbox((params, state))):
    got = begin
    for _ in range(3):
      got = step(*got)
    assert jax.tree.structure(got) == jax.tree.structure(begin)
    agree(by_path(got[0]), want)


@pytest.mark.heavy
@each_optimizer
def test_equinox(tx):
  model = EquinoxNet()
  params = eqx.filter(model, eqx.is_inexact_array)
  want = plain_training(residual, by_path(params), tx)
  state = tx.init(params)

  @eqx.filter_jit
  def step(model, state):
    grads = eqx.filter_grad(lambda model: jnp.mean((jax.vmap(model)(X) - Y) ** 2))(model)
    updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
    return eqx.apply_updates(model, updates), state

  for _ in range(3):
    model, state = step(model, state)
  agree(by_path(eqx.filter(model, eqx.is_inexact_array)), want)


# parts


def trained(model, optimizer, steps=2):
  """The parameters by path before and after some steps."""
  before = by_path(nnx.state(model, nnx.Param))
  before = {path: np.asarray(leaf) for path, leaf in before.items()}
  step = nnx.jit(nnx_step)
  for _ in range(steps):
    step(model, optimizer, X, Y)
  return before, by_path(nnx.state(model, nnx.Param))


def moved(before, after):
  return {path for path in before if not np.array_equal(before[path], after[path])}


@pytest.mark.heavy
@each_optimizer
@pytest.mark.parametrize("how", ["filter", "partition", "masked"])
def test_nnx_frozen_parts(tx, how):
  """All but the last two layers are frozen: by a filter of nnx.Optimizer, in one line of optax, by a mask of zeros."""
  model = nnx_net()
  wrt, last = nnx.Param, "layers/1[12]/"
  if how == "filter":
    wrt = nnx.All(nnx.Param, nnx.Any(nnx.PathContains(11), nnx.PathContains(12)))
  elif how == "partition":
    tx = optax.partition({True: tx, False: optax.set_to_zero()}, label_paths(last))
  else:
    tx = optax.chain(
      optax.masked(tx, label_paths(last)), optax.masked(optax.set_to_zero(), label_paths("layers/(.|10)/"))
    )
  before, after = trained(model, nnx.Optimizer(model, tx, wrt=wrt))
  names = {f"layers/{i}/{name}" for i in (11, 12) for name in ("kernel", "bias")}
  assert moved(before, after) == names


@pytest.mark.heavy
@each_optimizer
def test_nnx_other_kinds_of_variables(tx):
  """LoRA: only its factors are trained, as variables of a kind of their own."""

  class LoraNet(nnx.Module):
    def __init__(self, rngs):
      self.linear = nnx.LoRALinear(WIDTH, WIDTH, lora_rank=2, rngs=rngs)
      self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)

    def __call__(self, x):
      return self.norm(self.linear(x))

  model = LoraNet(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
  before, after = trained(model, optimizer)
  assert moved(before, after) == {"linear/lora/lora_a", "linear/lora/lora_b"}


@pytest.mark.slow
@pytest.mark.parametrize("build", TREES.values(), ids=TREES)
def test_parameter_groups_in_one_line(build):
  """Another learning rate for some paths; the same line for every kind of tree."""
  tx = optax.partition({True: optax_ext.adamnx(1.0), False: optax_ext.adamnx(0.1)}, label_paths(r"\b0/|_0/"))
  params = build()
  updates, _ = tx.update(params, tx.init(params), params)
  for path, update in by_path(updates).items():
    rate = 1.0 if path.startswith(("layers/0/", "Dense_0/", "0/")) else 0.1
    leaf = by_path(params)[path]
    np.testing.assert_allclose(update, -rate * (np.sign(leaf) + 0.01 * leaf), rtol=1e-3, atol=1e-6)


def test_labels_by_a_function():
  params = linen_params()
  labels = label_paths(lambda path, leaf: "matrix" if leaf.ndim > 1 else path)(params)
  assert labels["params"]["Dense_3"] == {"kernel": "matrix", "bias": "Dense_3/bias"}
  assert label_paths("x")({"a": None, "x": jnp.ones(1)}) == {"a": None, "x": True}
  with pytest.raises(TypeError, match="label must be a regular expression or a function"):
    label_paths(3)


# stacks of layers


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    return x + jnp.tanh(nn.Dense(WIDTH, name="linear")(nn.LayerNorm(name="norm")(x))), None


class Scanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
    return layers(name="layers")(x)[0]


class Unrolled(nn.Module):
  @nn.compact
  def __call__(self, x):
    for i in range(LAYERS):
      x = Block(name=f"layers_{i}")(x)[0]
    return x


MAKE = {
  "exadam": lambda structure: optax_ext.exadam(1e-3),
  "adamnx": lambda structure: optax_ext.adamnx(1e-2, mask=decay_mask(structure)),
  "caadam by depth": lambda structure: optax_ext.caadam(1e-2, rule=ByDepth(), structure=structure),
  "caadam": lambda structure: optax_ext.caadam(1e-2, structure=structure),
  "nd_adam": lambda structure: optax_ext.nd_adam(1e-3, structure=structure),
}


@pytest.mark.heavy
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_scanned_stack_is_trained_as_its_layers_are(make):
  """With the traced structure, layers in one leaf with a leading axis take the steps that they take one by one."""
  stacked = Scanned().init(jax.random.key(0), X)
  unstack = lambda tree: {
    "params": {f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tree["params"]["layers"]) for i in range(LAYERS)}
  }

  def run(model, params):
    tx = make(optax_ext.structure_from_model(model.apply, params, X))
    return plain_steps(lambda params: jnp.mean((model.apply(params, X) - Y) ** 2), params, tx)

  got, want = by_path(unstack(run(Scanned(), stacked))), by_path(run(Unrolled(), unstack(stacked)))
  agree(got, want)


def plain_steps(loss, params, tx, steps=3):
  state = tx.init(params)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(steps):
    params, state = step(params, state)
  return params


def decayed(mask, params):
  return {path for path, shown in by_path(mask(params)).items() if shown}


def test_decay_mask_on_linen_stacks():
  """No norms, no biases: a count of axes would decay every one of them here."""
  params = Scanned().init(jax.random.key(0), X)
  assert all(leaf.ndim > 1 for leaf in jax.tree.leaves(params))
  structure = optax_ext.structure_from_model(Scanned().apply, params, X)
  assert decayed(decay_mask(), params) == decayed(decay_mask(structure), params) == {"layers/linear/kernel"}


def test_decay_mask_needs_the_model_where_names_say_nothing():
  """In Equinox a norm's scale is called weight, and stacked it has two axes."""

  class Stack(eqx.Module):
    embedding: Any
    linear: Any
    norm: Any

    def __init__(self):
      keys = jax.random.split(jax.random.key(0), 4)
      self.linear = eqx.filter_vmap(lambda key: eqx.nn.Linear(WIDTH, WIDTH, key=key))(keys)
      self.norm = eqx.filter_vmap(lambda _: eqx.nn.LayerNorm(WIDTH))(keys)
      self.embedding = eqx.nn.Embedding(5, WIDTH, key=keys[0])

    def __call__(self, word):
      arrays, static = eqx.partition((self.linear, self.norm), eqx.is_array)

      def layer(x, arrays):
        linear, norm = eqx.combine(arrays, static)
        return x + linear(norm(x)), None

      return jax.lax.scan(layer, self.embedding(word), arrays)[0]

  params, static = eqx.partition(Stack(), eqx.is_inexact_array)
  apply = lambda params, word: eqx.combine(params, static)(word)
  structure = optax_ext.structure_from_model(apply, params, jnp.int32(3))
  assert decayed(decay_mask(structure), params) == {"linear/weight", "embedding/weight"}
  assert decayed(decay_mask(), params) == {"linear/weight", "embedding/weight", "norm/weight"}


@pytest.mark.heavy
def test_decay_mask_in_nnx():
  class Transformer(nnx.Module):
    def __init__(self, rngs):
      self.embed = nnx.Embed(7, 4, rngs=rngs)
      self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
      self.norm = nnx.LayerNorm(4, rngs=rngs)
      self.out = nnx.Linear(4, 7, rngs=rngs)

    def __call__(self, words):
      x = self.embed(words)
      return self.out(self.norm(x + self.attention(x)))

  model = Transformer(nnx.Rngs(0))
  words = jnp.zeros((2, 5), jnp.int32)
  params = nnx.state(model, nnx.Param)
  kernels = {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")} | {
    "out/kernel",
    "embed/embedding",
  }
  graph, _, rest = nnx.split(model, nnx.Param, ...)
  apply = lambda params, words: nnx.merge(graph, params, rest, copy=True)(words)
  structure = optax_ext.structure_from_model(apply, params, words)
  for mask in (decay_mask(), decay_mask(structure)):
    assert decayed(mask, params) == kernels
    tx = optax_ext.adamnx(1.0, weight_decay=0.5, mask=mask)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = by_path(jax.tree.map(np.asarray, nnx.state(model, nnx.Param)))
    optimizer.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param)))
    after = by_path(nnx.state(model, nnx.Param))
    for path, leaf in before.items():
      np.testing.assert_allclose(after[path], leaf / 2 if path in kernels else leaf, rtol=1e-6)


def test_decay_mask_of_another_model():
  structure = optax_ext.structure_from_params({"a": jnp.ones((2, 2))})
  with pytest.raises(ValueError, match="The structure does not match the parameters: it has nothing for 'b'"):
    decay_mask(structure)({"b": jnp.ones((2, 2))})
  apply = lambda p, x: p["temperature"] * (x @ p["w"])
  params = {"w": jnp.ones((2, 2)), "temperature": 1.0}
  structure = optax_ext.structure_from_model(apply, params, jnp.ones((1, 2)))
  assert decay_mask(structure)(params) == {"w": True, "temperature": False}  # a number is no array
  with pytest.raises(ValueError, match="it has nothing for 'temperature', Python numbers: make them arrays"):
    optax_ext.scale_by_structure(ByDepth(), structure).update(params, optax.EmptyState())


def test_decay_mask_where_a_gradient_is_missing():
  params = {"w": jnp.ones((3, 2)), "bias": jnp.ones(2)}
  for missing in params:
    grads = {**jax.tree.map(jnp.ones_like, params), missing: None}
    masked, plain = (optax_ext.adamnx(1.0, weight_decay=0.5 * on, mask=decay_mask()) for on in (1, 0))
    updates, without = (tx.update(grads, tx.init(params), params)[0] for tx in (masked, plain))
    assert updates[missing] is None
    if missing != "w":
      np.testing.assert_allclose(updates["w"], without["w"] - 0.5)
    else:
      np.testing.assert_array_equal(updates["bias"], without["bias"])


class NormedNet(nnx.Module):
  def __init__(self, rngs):
    self.normed = nnx.WeightNorm(nnx.Linear(4, 5, rngs=rngs), rngs=rngs)
    self.out = nnx.Linear(5, 2, rngs=rngs)

  def __call__(self, x):
    return self.out(nnx.relu(self.normed(x)))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(nnx, "WeightNorm"), reason="Flax 0.12.0 has no nnx.WeightNorm")
def test_weight_normalisation_in_nnx():
  """Its scales are parameters since Flax 0.12.9: they have their weight's layer, do not decay, and are no vectors."""
  model, x = NormedNet(nnx.Rngs(0)), jnp.ones((3, 4))
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  structure = optax_ext.structure_from_model(lambda p, x: nnx.merge(graph, p, rest)(x), params, x)
  facts = {one.path: one for one in structure.leaves()}
  kernel = "normed/layer_instance/kernel"
  assert (facts[kernel].layer, facts[kernel].contracting_axes, facts[kernel].depth) == (kernel, (0,), 0)
  scales = [path for path in facts if "scales" in path]
  assert len(scales) == (tuple(map(int, flax.__version__.split(".")[:3])) >= (0, 12, 9))
  for path in scales:
    assert (facts[path].layer, facts[path].contracting_axes, facts[path].depth) == (kernel, None, 0)
  for mask in (decay_mask(structure), decay_mask()):
    assert {path for path, shown in by_path(mask(params)).items() if shown} == {kernel, "out/kernel"}
  optimizer = nnx.Optimizer(model, optax_ext.nd_adam(1e-3, structure=structure), wrt=nnx.Param)
  optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model))
  np.testing.assert_allclose(jnp.linalg.norm(model.normed.layer_instance.kernel[...], axis=0), 1, rtol=1e-6)
  assert not scales or np.ptp(jax.tree.leaves(model.normed.scales)[0]) < 3e-3  # a step of Adam each, no unit vector
