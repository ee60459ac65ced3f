"""Small models in Flax linen, NNX and Equinox, each with the facts about its parameters, derived by hand."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from plain_models import F32, PLAIN, Model, bias, none, part, rand, weight

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of jax 0.7, which Equinox meets
  import equinox as eqx


def filled(shapes):
  """Random numbers in a tree of shapes: cheaper than the initialisers."""
  leaves, treedef = jax.tree.flatten(shapes)
  return jax.tree.unflatten(treedef, [rand(leaf.shape, i) for i, leaf in enumerate(leaves)])


def linen(module, *inputs, **kwargs):
  """A linen module's function of the variables that hold its parameters, and these."""
  variables = jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args, **kwargs), *inputs)
  stats = {
    name: jax.tree.map(lambda leaf: jnp.ones(leaf.shape), kind) for name, kind in variables.items() if name != "params"
  }

  def apply(params, *inputs):
    return module.apply({**params, **stats}, *inputs, **kwargs)

  return apply, {"params": filled(variables["params"])}


def dense(name, depth, n, m, bias_=True):
  facts = {f"{name}/kernel": weight(depth, n * m, (0,))}
  return facts | ({f"{name}/bias": bias(f"{name}/kernel", depth, n * m)} if bias_ else {})


def conv(name, depth, h, w, i, o, bias_=False):
  facts = {f"{name}/kernel": weight(depth, h * w * i * o, (0, 1, 2))}
  return facts | ({f"{name}/bias": bias(f"{name}/kernel", depth, h * w * i * o)} if bias_ else {})


def norm(name, depth):
  return {f"{name}/scale": none(depth), f"{name}/bias": none(depth)}


# Multi-layer perceptrons


class MLP(nn.Module):
  @nn.compact
  def __call__(self, x):
    for width in (6, 5):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(2)(x)


MLP_FACTS = dense("Dense_0", 0, 4, 6) | dense("Dense_1", 1, 6, 5) | dense("Dense_2", 2, 5, 2)


def mlp_linen():
  return Model(*linen(MLP(), x := rand((3, 4))), (x,), MLP_FACTS, 3)


def mlp_jit_remat():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      for i, width in enumerate((6, 5)):
        x = nn.relu(nn.remat(nn.Dense)(width, name=f"Dense_{i}")(x))
      return nn.Dense(2, name="Dense_2")(x)

  apply, params = linen(Net(), x := rand((3, 4)))
  return Model(jax.jit(apply), params, (x,), MLP_FACTS, 3)


def mlp_bfloat16():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      for i, width in enumerate((6, 5, 2)):
        x = nn.Dense(width, dtype=jnp.bfloat16, name=f"Dense_{i}")(nn.relu(x) if i else x)
      return x.astype(F32)

  return Model(*linen(Net(), x := rand((3, 4))), (x,), MLP_FACTS, 3)


class NnxMLP(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List([nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)])
    self.norm = nnx.BatchNorm(6, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    x = self.dropout(nnx.relu(self.norm(self.layers[0](x))))
    return self.layers[2](nnx.relu(self.layers[1](x)))


def mlp_nnx():
  graph, params, rest = nnx.split(NnxMLP(nnx.Rngs(0)), nnx.Param, ...)
  apply = lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)
  facts = dense("layers/0", 0, 4, 6) | norm("norm", 0) | dense("layers/1", 1, 6, 5) | dense("layers/2", 2, 5, 2)
  return Model(apply, params, (rand((3, 4)),), facts, 3)


def mlp_equinox():
  params, static = eqx.partition(eqx.nn.MLP(4, 2, 6, 2, key=jax.random.key(0)), eqx.is_array)
  apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
  facts = {}
  for i, (n, m) in enumerate([(4, 6), (6, 6), (6, 2)]):
    name = f"layers/{i}/weight"
    facts |= {name: weight(i, n * m, (1,)), f"layers/{i}/bias": bias(name, i, n * m)}
  return Model(apply, params, (rand((3, 4)),), facts, 3)


def conv_equinox():
  class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    linear: eqx.nn.Linear

    def __call__(self, x):
      return self.linear(jax.nn.relu(self.conv(x)).mean((1, 2)))

  net = Net(eqx.nn.Conv2d(2, 4, 3, key=jax.random.key(0)), eqx.nn.Linear(4, 3, key=jax.random.key(1)))
  params, static = eqx.partition(net, eqx.is_array)
  apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
  facts = {
    "conv/weight": weight(0, 72, (1, 2, 3)), "conv/bias": bias("conv/weight", 0, 72),
    "linear/weight": weight(1, 12, (1,)), "linear/bias": bias("linear/weight", 1, 12),
  }  # fmt: skip
  return Model(apply, params, (rand((2, 2, 5, 5)),), facts, 2)


# Convolutional networks


class ResNet(nn.Module):
  """ResNet-20: three stages of three blocks; a projection where the shape changes."""

  width: int = 2
  blocks: int = 3

  @nn.compact
  def __call__(self, x, train=True):
    bn = lambda name: nn.BatchNorm(use_running_average=not train, name=name)
    x = nn.relu(bn("norm")(nn.Conv(self.width, (3, 3), use_bias=False, name="stem")(x)))
    for stage in range(3):
      width = self.width * 2**stage
      for block in range(self.blocks):
        stride, name = 2 if stage and not block else 1, f"{stage}_{block}"
        y = nn.Conv(width, (3, 3), (stride, stride), use_bias=False, name=f"conv_{name}a")(x)
        y = nn.relu(bn(f"norm_{name}a")(y))
        y = bn(f"norm_{name}b")(nn.Conv(width, (3, 3), use_bias=False, name=f"conv_{name}b")(y))
        if x.shape != y.shape:
          x = bn(f"norm_{name}p")(nn.Conv(width, (1, 1), (stride, stride), use_bias=False, name=f"proj_{name}")(x))
        x = nn.relu(x + y)
    return nn.Dense(10, name="head")(x.mean((1, 2)))


def resnet20():
  module = ResNet()
  x = rand((2, 8, 8, 3))
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)
  apply = lambda params, x: module.apply({**params, "batch_stats": stats}, x, mutable=["batch_stats"])[0]
  stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["batch_stats"])
  facts = conv("stem", 0, 3, 3, 3, 2) | norm("norm", 0)
  depth, before = 1, 2
  for stage in range(3):
    width = 2 * 2**stage
    for block in range(3):
      name = f"{stage}_{block}"
      facts |= conv(f"conv_{name}a", depth, 3, 3, before, width) | norm(f"norm_{name}a", depth)
      facts |= conv(f"conv_{name}b", depth + 1, 3, 3, width, width) | norm(f"norm_{name}b", depth + 1)
      if before != width:
        facts |= conv(f"proj_{name}", depth, 1, 1, before, width) | norm(f"norm_{name}p", depth)
      depth, before = depth + 2, width
  facts |= dense("head", 19, 8, 10)
  return Model(apply, {"params": filled(variables["params"])}, (x,), facts, 20)


class UNet(nn.Module):
  transpose_kernel: bool = False

  @nn.compact
  def __call__(self, x):
    a = nn.relu(nn.Conv(2, (3, 3), name="down0")(x))
    b = nn.relu(nn.Conv(4, (3, 3), (2, 2), name="down1")(a))
    c = nn.relu(nn.Conv(6, (3, 3), (2, 2), name="middle")(b))
    up = lambda width, name: nn.ConvTranspose(width, (2, 2), (2, 2), transpose_kernel=self.transpose_kernel, name=name)
    d = nn.relu(nn.Conv(4, (3, 3), name="join1")(jnp.concatenate([up(4, "up1")(c), b], -1)))
    e = nn.relu(nn.Conv(2, (3, 3), name="join0")(jnp.concatenate([up(2, "up0")(d), a], -1)))
    return nn.Conv(1, (1, 1), name="out")(e)


def unet():
  facts = conv("down0", 0, 3, 3, 1, 2, True) | conv("down1", 1, 3, 3, 2, 4, True) | conv("middle", 2, 3, 3, 4, 6, True)
  facts |= conv("up1", 3, 2, 2, 6, 4, True) | conv("join1", 4, 3, 3, 8, 4, True) | conv("up0", 5, 2, 2, 4, 2, True)
  facts |= conv("join0", 6, 3, 3, 4, 2, True) | conv("out", 7, 1, 1, 2, 1, True)
  return Model(*linen(UNet(), x := rand((1, 8, 8, 1))), (x,), facts, 8)


def unet_transpose_kernel():
  model = unet()
  facts = dict(model.facts)  # such kernels are (height, width, out, in)
  facts["up1/kernel"], facts["up0/kernel"] = weight(3, 96, (0, 1, 3)), weight(5, 32, (0, 1, 3))
  return Model(*linen(UNet(transpose_kernel=True), x := rand((1, 8, 8, 1))), (x,), facts, 8)


def separable():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x)
      x = nn.Conv(6, (3, 3), feature_group_count=2, name="grouped")(nn.relu(x))
      s = nn.Dense(2, name="squeeze")(x.mean((1, 2)))  # squeeze and excite: branches of the longest path
      x = x * nn.sigmoid(nn.Dense(6, name="excite")(nn.relu(s)))[:, None, None]
      return nn.Conv(3, (1, 1), name="pointwise")(x)

  facts = {
    "depthwise/kernel": weight(0, 36, (0, 1, 2)), "depthwise/bias": bias("depthwise/kernel", 0, 36),
    "grouped/kernel": weight(1, 108, (0, 1, 2)), "grouped/bias": bias("grouped/kernel", 1, 108),
  }  # fmt: skip
  facts |= dense("squeeze", 2, 6, 2) | dense("excite", 3, 2, 6) | conv("pointwise", 4, 1, 1, 6, 3, True)
  return Model(*linen(Net(), x := rand((2, 6, 6, 4))), (x,), facts, 5)


# Transformers


def attention(name, depth, d, heads, dim):
  size, facts = d * heads * dim, {}
  for part_ in ("query", "key", "value"):
    kernel = f"{name}/{part_}/kernel"
    facts |= {kernel: weight(depth, size, (0,)), f"{name}/{part_}/bias": bias(kernel, depth, size)}
  out = f"{name}/out/kernel"
  return facts | {out: weight(depth + 1, size, (0, 1)), f"{name}/out/bias": bias(out, depth + 1, size)}


class Block(nn.Module):
  heads: int = 2

  @nn.compact
  def __call__(self, x):
    x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(nn.LayerNorm(name="norm0")(x))
    h = nn.Dense(8, name="up")(nn.LayerNorm(name="norm1")(x))
    return x + nn.Dense(x.shape[-1], name="down")(nn.gelu(h))


def block(name, depth, d=4):
  """Facts about one block whose input comes after `depth` products."""
  before = max(0, depth - 1)
  facts = norm(f"{name}/norm0", before) | attention(f"{name}/attention", depth, d, 2, d // 2)
  facts |= norm(f"{name}/norm1", depth + 1)
  return facts | dense(f"{name}/up", depth + 2, d, 8) | dense(f"{name}/down", depth + 3, 8, d)


def vit():
  class ViT(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(4, (2, 2), (2, 2), name="patches")(x)
      x = x.reshape(x.shape[0], -1, 4)
      cls = self.param("cls", nn.initializers.normal(), (1, 1, 4))
      x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], 1)
      x = x + self.param("positions", nn.initializers.normal(), (1, x.shape[1], 4))
      for i in range(2):
        x = Block(name=f"block_{i}")(x)
      return nn.Dense(3, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])

  facts = conv("patches", 0, 2, 2, 3, 4, True) | {"cls": none(0), "positions": none(0)}
  facts |= block("block_0", 1) | block("block_1", 5) | norm("norm", 8) | dense("head", 9, 4, 3)
  return Model(*linen(ViT(), x := rand((2, 4, 4, 3))), (x,), facts, 10)


def gpt_tied():
  class GPT(nn.Module):
    @nn.compact
    def __call__(self, ids):
      embed = nn.Embed(7, 4, name="embed")
      x = embed(ids) + self.param("positions", nn.initializers.normal(), (1, 5, 4))
      for i in range(2):
        x = Block(name=f"block_{i}")(x)
      return embed.attend(nn.LayerNorm(name="norm", use_bias=False)(x))

  facts = {"embed/embedding": weight(0, 28, (1,)), "positions": none(0)}  # looked up at depth 0, multiplied at 8
  facts |= block("block_0", 0) | block("block_1", 4) | {"norm/scale": none(7)}
  return Model(*linen(GPT(), ids := jnp.arange(10).reshape(2, 5) % 7), (ids,), facts, 9)


# Recurrent networks


def lstm():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.RNN(nn.OptimizedLSTMCell(3), name="rnn0")(x)
      x = nn.RNN(nn.LSTMCell(3), name="rnn1", reverse=True)(x)
      return nn.Dense(2, name="head")(x[:, -1])

  facts = {}
  for gate in "ifgo":  # concatenated in the first cell
    facts |= {f"OptimizedLSTMCell_0/i{gate}/kernel": part("OptimizedLSTMCell_0/if/kernel", 0, 4 * 4 * 3, (0,))}
    facts |= {f"OptimizedLSTMCell_0/h{gate}/kernel": part("OptimizedLSTMCell_0/hf/kernel", 0, 4 * 3 * 3, (0,))}
    facts |= {f"OptimizedLSTMCell_0/h{gate}/bias": bias("OptimizedLSTMCell_0/hf/kernel", 0, 4 * 3 * 3)}
    facts |= dense(f"LSTMCell_0/i{gate}", 1, 3, 3, False) | dense(f"LSTMCell_0/h{gate}", 1, 3, 3)
  facts["OptimizedLSTMCell_0/if/kernel"], facts["OptimizedLSTMCell_0/hf/kernel"] = (
    weight(0, 48, (0,)),
    weight(0, 36, (0,)),
  )
  return Model(*linen(Net(), x := rand((2, 5, 4))), (x,), facts | dense("head", 2, 3, 2), 3)


def gru():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(2, name="head")(nn.RNN(nn.GRUCell(3), name="rnn")(nn.Dense(4, name="in")(x))[:, -1])

  facts = dense("in", 0, 3, 4) | dense("head", 2, 3, 2)
  for gate in "rzn":
    facts |= dense(f"GRUCell_0/i{gate}", 1, 4, 3) | dense(f"GRUCell_0/h{gate}", 1, 3, 3, gate == "n")
  return Model(*linen(Net(), x := rand((2, 5, 3))), (x,), facts, 3)


# Stacks, copies, parametrisations


class Step(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    h = nn.Dense(6, name="up")(nn.LayerNorm(name="norm")(x))
    return x + nn.Dense(4, name="down")(nn.relu(h)), None


def scanned():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(4, name="in")(x)
      layers = nn.scan(nn.remat(Step), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
      x, _ = layers(name="layers")(x, None)
      return nn.Dense(2, name="out")(x)

  up, down = np.array([1, 3, 5]), np.array([2, 4, 6])
  facts = {
    "layers/norm/scale": none(up - 1, (0,)), "layers/norm/bias": none(up - 1, (0,)),
    "layers/up/kernel": weight(up, 24, (1,), (0,)), "layers/up/bias": bias("layers/up/kernel", up, 24, None, (0,)),
    "layers/down/kernel": weight(down, 24, (1,), (0,)),
    "layers/down/bias": bias("layers/down/kernel", down, 24, None, (0,)),
  } | dense("in", 0, 3, 4) | dense("out", 7, 4, 2)  # fmt: skip
  return Model(*linen(Net(), x := rand((2, 3))), (x,), facts, 8)


def scanned_nnx():
  class Layer(nnx.Module):
    def __init__(self, rngs):
      self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
      return jnp.tanh(self.linear(x))

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.layers = nnx.split_rngs(splits=3)(nnx.vmap(Layer, in_axes=0, out_axes=0))(rngs)
      self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
      step = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
      return self.out(step(x, self.layers))

  graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
  apply = lambda params, x: nnx.merge(graph, params, rest, copy=True)(x)
  name, depth = "layers/linear/kernel", np.arange(3)
  facts = {name: weight(depth, 16, (1,), (0,)), "layers/linear/bias": bias(name, depth, 16, None, (0,))}
  return Model(apply, params, (rand((2, 4)),), facts | dense("out", 3, 4, 2), 4)


def ensemble():
  """Copies made by `vmap` that see one input: the first layer has no batch axis."""

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.LayerNorm(name="norm")(nn.Dense(5, name="in")(x)))
      return nn.Dense(2, name="out")(x)

  copies = nn.vmap(Net, in_axes=None, axis_size=3, variable_axes={"params": 0}, split_rngs={"params": True})
  facts = {
    "in/kernel": weight(0, 20, (1,), (0,)), "in/bias": bias("in/kernel", 0, 20, None, (0,)),
    "norm/scale": none(0, (0,)), "norm/bias": none(0, (0,)),
    "out/kernel": weight(1, 10, (1,), (0,)), "out/bias": bias("out/kernel", 1, 10, None, (0,)),
  }  # fmt: skip
  return Model(*linen(copies(), x := rand((2, 4))), (x,), facts, 2)


def weight_norm():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.WeightNorm(nn.Dense(5, name="in"), name="normed")(x))
      return nn.Dense(2, name="out")(x)

  facts = dense("in", 0, 4, 5) | dense("out", 1, 5, 2)
  facts |= {"normed/in/kernel/scale": part("in/kernel", 0, 20)}
  return Model(*linen(Net(), x := rand((2, 4))), (x,), facts, 2)


MODELS = [
  mlp_linen, mlp_jit_remat, mlp_bfloat16, mlp_nnx, mlp_equinox, conv_equinox, resnet20, unet, unet_transpose_kernel,
  separable, vit, gpt_tied, lstm, gru, scanned, scanned_nnx, ensemble, weight_norm, *PLAIN,
]  # fmt: skip
