"""Small models in plain jax, each with the facts about its parameters, derived by hand.

A builder returns the function, its parameters, its inputs and the facts: for each path `weight(...)` for a layer of its
own, `part(...)` for a leaf in another's product, `bias(...)` for what is added to one, `none(...)` for one of no layer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import reference
from jax import lax

from optax_ext._common.paths import by_path

F32 = jnp.float32


@dataclasses.dataclass(frozen=True)
class Expected:
  depth: Any
  connections: int = 0
  contracting: tuple[int, ...] | None = None
  stacked: tuple[int, ...] = ()
  layer: str | None = "itself"


def weight(depth, connections, contracting, stacked=()):
  return Expected(depth, connections, contracting, stacked)


def part(layer, depth, connections, contracting=None, stacked=()):
  return Expected(depth, connections, contracting, stacked, layer)


bias = part


def none(depth=0, stacked=()):
  return Expected(depth, stacked=stacked, layer=None)


@dataclasses.dataclass(frozen=True)
class Model:
  apply: Callable[..., Any]
  params: Any
  inputs: tuple[Any, ...]
  facts: dict[str, Expected]
  num_layers: int


def rand(shape, seed=0, dtype=F32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, dtype)


def tree(**shapes):
  return {name: tree(**s) if isinstance(s, dict) else rand(s, seed) for seed, (name, s) in enumerate(shapes.items())}


def leaves_by_path(tree, is_leaf=None):
  return by_path(tree, is_leaf)


def check(structure, model):
  """The structure is the one derived by hand."""
  assert {facts.path for facts in structure.leaves()} == set(model.facts) == set(leaves_by_path(model.params))
  for facts in structure.leaves():
    want = model.facts[facts.path]
    layer = facts.path if want.layer == "itself" else want.layer
    np.testing.assert_array_equal(facts.depth, want.depth, err_msg=facts.path)
    got = facts.layer, facts.connections, facts.contracting_axes, facts.stacked_axes, facts.note
    assert got == (layer, want.connections, want.contracting, want.stacked, ""), facts.path
  assert structure.num_layers == model.num_layers


def scale_by_hand(rule, model, path, shape):
  """S of one leaf by the paper's equations, from the facts derived by hand."""
  want = model.facts[path]
  counts = [f.connections for f in model.facts.values() if f.layer == "itself" for _ in range(np.size(f.depth))]
  if type(rule).__name__ == "ByDepth":
    along = [n if axis in want.stacked else 1 for axis, n in enumerate(shape)]
    depth = np.reshape(want.depth, along) if np.ndim(want.depth) else want.depth
    return reference.by_depth(depth, model.num_layers, rule.gamma)
  if want.layer is None:
    return 1.0
  if type(rule).__name__ == "Additive":
    return reference.additive(want.connections, counts, rule.gamma)
  return reference.multiplicative(want.connections, counts, rule.gamma, rule.signed)


def mlp_dict():
  params = tree(a=(4, 6), b=(6,), c=(5, 6), d=(5,))  # c in torch's layout
  apply = lambda p, x: jnp.tanh(x @ p["a"] + p["b"]) @ p["c"].T + p["d"]
  facts = {"a": weight(0, 24, (0,)), "b": bias("a", 0, 24), "c": weight(1, 30, (1,)), "d": bias("c", 1, 30)}
  return Model(apply, params, (rand((3, 4)),), facts, 2)


def fused_qkv():
  """Einsum attention, its three projections in one weight that a reshape takes apart."""
  params = tree(qkv=(4, 3 * 2 * 2), qkv_bias=(12,), out=(4, 4), per_head=(3, 2, 4, 2))

  def apply(p, x):
    qkv = jnp.einsum("btd,dchk->cbthk", x, p["qkv"].reshape(4, 3, 2, 2)) + p["qkv_bias"].reshape(3, 1, 1, 2, 2)
    q, k, v = qkv
    weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k))
    y = jnp.einsum("bhqs,bshk->bqhk", weights, v)
    x = x + jnp.einsum("bqhk,hkd->bqd", y, p["out"].reshape(2, 2, 4))
    return jnp.einsum("btd,chdk->cbthk", x, p["per_head"])

  facts = {
    "qkv": weight(0, 48, (0,)), "qkv_bias": bias("qkv", 0, 48), "out": weight(1, 16, (0,)),
    "per_head": weight(2, 48, (2,)),
  }  # fmt: skip
  return Model(apply, params, (rand((2, 3, 4)),), facts, 3)


def concatenated_qkv():
  """Three weights concatenated into one product are one layer."""
  params = tree(k=(4, 6), q=(4, 6), v=(4, 6), bq=(6,), bk=(6,), bv=(6,), out=(6, 4))

  def apply(p, x):
    w, b = (jnp.concatenate([p[n] for n in names], -1) for names in (("q", "k", "v"), ("bq", "bk", "bv")))
    q, k, v = jnp.split(x @ w + b, 3, -1)
    return jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2)) @ v @ p["out"]

  facts = {name: part("k", 0, 72, (0,)) for name in "qkv"} | {f"b{name}": bias("k", 0, 72) for name in "qkv"}
  return Model(apply, params, (rand((2, 3, 4)),), facts | {"k": weight(0, 72, (0,)), "out": weight(1, 24, (0,))}, 2)


def experts():
  """A mixture: a router, and experts that take one group of tokens each."""
  params = tree(router=(4, 3), up=(3, 4, 5), up_bias=(3, 5), down=(3, 5, 4), head=(4, 2))

  facts = {
    "router": weight(0, 12, (0,)), "up": weight(1, 20, (1,), (0,)), "up_bias": bias("up", 1, 20, None, (0,)),
    "down": weight(2, 20, (1,), (0,)), "head": weight(3, 8, (0,)),
  }  # fmt: skip

  def apply(p, x):
    gate = jax.nn.softmax(x @ p["router"])
    given = jnp.einsum("te,td->etd", gate, x)
    h = jax.nn.relu(jnp.einsum("etd,edf->etf", given, p["up"]) + p["up_bias"][:, None])
    return jnp.einsum("etf,efd->etd", h, p["down"]).sum(0) @ p["head"]

  return Model(apply, params, (rand((6, 4)),), facts, 4)


def ragged_experts():
  params = tree(up=(3, 4, 5), head=(5, 2))

  def apply(p, x):
    return jax.nn.relu(jax.lax.ragged_dot(x, p["up"], jnp.array([1, 2, 3]))) @ p["head"]

  return Model(apply, params, (rand((6, 4)),), {"up": weight(0, 20, (1,), (0,)), "head": weight(1, 10, (0,))}, 2)


def nested_scan():
  """Groups of layers; the inner loop runs backwards."""
  params = tree(inner=(2, 3, 4, 4), outer=(2, 4, 4))

  def apply(p, x):
    def group(x, ws):
      x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws[0], reverse=True)
      return jnp.tanh(x @ ws[1]), None

    return jax.lax.scan(group, x, (p["inner"], p["outer"]))[0]

  inner = np.array([[2, 1, 0], [6, 5, 4]])
  facts = {"inner": weight(inner, 16, (2,), (0, 1)), "outer": weight(np.array([3, 7]), 16, (1,), (0,))}
  return Model(apply, params, (rand((2, 4)),), facts, 8)


def fori():
  params = tree(w=(3, 4, 4), b=(3, 4), out=(4, 2))

  def apply(p, x):
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ p["w"][i] + p["b"][i]), x) @ p["out"]

  depth = np.arange(3)
  facts = {"w": weight(depth, 16, (1,), (0,)), "b": bias("w", depth, 16, None, (0,)), "out": weight(3, 8, (0,))}
  return Model(apply, params, (rand((2, 4)),), facts, 4)


def stacked_in_the_model():
  """Layers of their own that the model stacks, and then scans over."""
  params = tree(**{f"layer_{i}": {"w": (4, 4), "b": (4,)} for i in range(3)}, out=(4, 2))

  def apply(p, x):
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p[f"layer_{i}"] for i in range(3)))
    return jax.lax.scan(lambda x, p: (jnp.tanh(x @ p["w"] + p["b"]), None), x, stack)[0] @ p["out"]

  facts: dict[str, Expected] = {"out": weight(3, 8, (0,))}
  for i in range(3):
    facts |= {f"layer_{i}/w": weight(i, 16, (0,)), f"layer_{i}/b": bias(f"layer_{i}/w", i, 16)}
  return Model(apply, params, (rand((2, 4)),), facts, 4)


def ensemble_conv():
  """vmap turns copies of a convolution into groups of one."""
  params = tree(a=(3, 2, 2, 1, 4), b=(3, 2, 2, 4, 5), c=(3, 5, 2))

  def net(p, x):
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(conv(jax.nn.relu(conv(x, p["a"])), p["b"])).mean((1, 2)) @ p["c"]

  facts = {
    "a": weight(0, 16, (1, 2, 3), (0,)), "b": weight(1, 80, (1, 2, 3), (0,)), "c": weight(2, 10, (1,), (0,)),
  }  # fmt: skip
  return Model(jax.vmap(net, (0, None)), params, (rand((2, 4, 4, 1)),), facts, 3)


def ensemble_depthwise():
  """Here vmap puts the groups first, and the copies into the output of each."""
  params = tree(a=(3, 2, 2, 1, 4), b=(3, 4, 2))

  def net(p, x):
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 4}
    return lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", **numbers) @ p["b"]

  facts = {"a": weight(0, 16, (1, 2, 3), (0,)), "b": weight(1, 8, (1,), (0,))}
  return Model(jax.vmap(net, (0, None)), params, (rand((2, 4, 4, 4)),), facts, 2)


def lora():
  """W + A·B is one layer; A·B apart, on x·A, would be two."""
  params = tree(a=(4, 2), b=(2, 6), w=(4, 6), out=(6, 3), out_a=(6, 2), out_b=(2, 3))

  def apply(p, x):
    x = jnp.tanh(x @ (p["w"] + 0.5 * p["a"] @ p["b"]))
    return x @ jax.lax.stop_gradient(p["out"]) + (x @ p["out_a"]) @ p["out_b"]

  facts = {
    "w": weight(0, 24, (0,)), "a": part("w", 0, 24, (0,)), "b": part("w", 0, 24, (0,)), "out": weight(1, 18, (0,)),
    "out_a": weight(1, 12, (0,)), "out_b": weight(2, 6, (0,)),
  }  # fmt: skip
  return Model(apply, params, (rand((2, 4)),), facts, 3)


def masked_and_sliced():
  """Masks, halves of a weight in two products, a product with the rows of one turned around, a branch."""
  params = tree(w=(6, 4), u=(4, 4), v=(4, 4), out=(4, 2))

  def apply(p, x):
    mask = jnp.tril(jnp.ones((6, 4)))
    w = jnp.where(mask > 0, p["w"], 0) * mask
    x = jnp.tanh(x[:, :2] @ w[:2] + x[:, 2:] @ w[2:])
    x = jax.lax.cond(x.sum() > 0, lambda x: jnp.tanh(x @ p["u"]) @ p["v"][::-1], lambda x: x, x)
    return x @ p["out"]

  facts = {"w": weight(0, 24, (0,)), "u": weight(1, 16, (0,)), "v": weight(2, 16, (0,)), "out": weight(3, 8, (0,))}
  return Model(apply, params, (rand((2, 6)),), facts, 4)


def two_towers():
  params = tree(user=(4, 3), item0=(5, 3), item1=(3, 3), mix=(6, 1))

  def apply(p, a, b):
    a, b = jnp.tanh(a @ p["user"]), jnp.tanh(jnp.tanh(b["features"] @ p["item0"]) @ p["item1"])
    return jnp.concatenate([a, b], -1) @ p["mix"]

  facts = {
    "user": weight(0, 12, (0,)), "item0": weight(0, 15, (0,)), "item1": weight(1, 9, (0,)), "mix": weight(2, 6, (0,)),
  }  # fmt: skip
  return Model(apply, params, (rand((2, 4)), {"features": rand((2, 5))}), facts, 3)


def shared():
  """One weight at three depths has the least."""
  params = tree(first=(4, 4), again=(4, 4), last=(4, 1))

  def apply(p, x):
    x = jnp.tanh(x @ p["first"])
    for _ in range(3):
      x = jnp.tanh(x @ p["again"])
    return x @ p["last"]

  facts = {"first": weight(0, 16, (0,)), "again": weight(1, 16, (0,)), "last": weight(4, 4, (0,))}
  return Model(apply, params, (rand((2, 4)),), facts, 5)


PLAIN = [
  mlp_dict, fused_qkv, concatenated_qkv, experts, ragged_experts, nested_scan, fori, stacked_in_the_model,
  ensemble_conv, ensemble_depthwise, lora, masked_and_sliced, two_towers, shared,
]  # fmt: skip
