"""Random combinations of optimizer, tree, dtypes, magnitudes and wrappers: does anything break?

    python benchmarks/fuzz.py --cases 10000 --seed 0

Each case draws an optimizer (a whole one, or a chain of random pieces), random arguments, a tree of random shapes and
kinds of leaves, a dtype for each leaf, gradients from 0 over denormals to 1e30, up to two of optax's wrappers, and
takes two steps, compiled or not. It must hold that

- nothing is raised, but the errors of one sentence that are allowed for what was asked;
- finite gradients never make a NaN, in updates or state;
- the state keeps its structure, shapes and dtypes, and updates have the parameters' structure, shapes and dtypes (those
  of split weights are float32);
- a NaN or infinity in one leaf leaves the updates of all others as they are, to the bit.

A case is its seed and number alone: `--only 1234` runs one again and prints what was drawn.
"""

import argparse
import collections
import time
import traceback
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_ext

DTYPES = [jnp.float32] * 4 + [jnp.bfloat16] * 2 + [jnp.float16, jnp.complex64]
SHAPES = [(), (1,), (3,), (2, 3), (3, 2), (1, 1), (2, 2, 3), (0, 2), (1, 3, 1, 2)]
NAMES = ["kernel", "bias", "scale", "w", "b", "weight", "embedding", "Dense_2", "Dense_10", "value", "params_", "0"]
MAGNITUDES = [0.0, 1e-45, 1e-40, 1e-30, 1e-20, 1e-8, 1e-3, 1.0, 1.0, 1.0, 1e3, 1e10, 1e20, 1e30]


class Draw:
  """A random number generator that remembers what was drawn, for the report."""

  def __init__(self, seed: int, case: int):
    self.rng = np.random.default_rng([seed, case])
    self.log: list[str] = []

  def one(self, what: str, options: Any) -> Any:
    """One of the options; a dict's options have names."""
    names = list(options)
    name = names[int(self.rng.integers(len(names)))]
    self.log.append(f"{what}={getattr(name, '__name__', name)}")
    return options[name] if isinstance(options, dict) else name

  def chance(self, p: float) -> bool:
    """True with probability p."""
    return bool(self.rng.random() < p)


# what is optimised


def draw_tree(draw: Draw) -> Any:
  """A tree of dicts, lists and tuples with up to four leaves, some of them None."""
  leaves = int(draw.rng.integers(1, 5))

  def leaf() -> Any:
    if leaves > 1 and draw.chance(0.06):  # params that are None altogether are params that were not given
      return None
    shape, dtype = draw.one("shape", SHAPES), draw.one("dtype", DTYPES)
    magnitude = draw.one("weights", [0.0, 1e-3, 1.0, 1.0, 1.0, 1e3])
    return values(draw, shape, dtype, magnitude)

  def node(count: int, depth: int) -> Any:
    if count == 1 and (depth == 0 or draw.chance(0.7)):
      return leaf()
    sizes = [count] if count == 1 else split(draw, count)
    children = [node(size, max(0, depth - 1)) for size in sizes]
    kind = draw.one("node", [dict, dict, dict, list, tuple])
    if kind is dict:
      names = draw.rng.permutation(NAMES)[: len(children)]
      return {str(name): child for name, child in zip(names, children, strict=True)}
    return kind(children)

  return node(leaves, 2)


def split(draw: Draw, count: int) -> list[int]:
  first = int(draw.rng.integers(1, count))
  return [first, count - first]


def values(draw: Draw, shape: tuple[int, ...], dtype: Any, magnitude: float) -> jax.Array:
  """Numbers of about that magnitude, kept finite in their dtype; some of them 0."""
  raw = draw.rng.normal(size=shape) * magnitude * (draw.rng.random(shape) > 0.2)
  if jnp.issubdtype(dtype, jnp.complexfloating):
    raw = raw + 1j * draw.rng.normal(size=shape) * magnitude
    return jnp.asarray(raw, dtype)
  largest = float(jnp.finfo(dtype).max)
  return jnp.asarray(np.clip(raw, -largest, largest), dtype)


def draw_gradients(draw: Draw, params: Any) -> Any:
  """One magnitude for each leaf, or one for all."""
  same = draw.one("gradients", MAGNITUDES) if draw.chance(0.5) else None
  magnitude = lambda: draw.one("gradient", MAGNITUDES) if same is None else same
  return jax.tree.map(lambda leaf: values(draw, leaf.shape, leaf.dtype, magnitude()), params)


# what optimises

RATES = {str(rate): rate for rate in (0.0, 1e-3, 1e-2, 1.0)} | {
  "schedule": optax.linear_schedule(0.0, 1e-2, 2),
  "array": jnp.float32(1e-3),
}


def draw_optimizer(draw: Draw) -> tuple[str, optax.GradientTransformation]:
  """One of the four with random arguments, or a chain of random pieces."""
  name = draw.one("optimizer", ["exadam", "adamnx", "caadam", "nd_adam", "pieces", "pieces"])
  rate = draw.one("rate", RATES)
  if name == "pieces":
    return name, draw_pieces(draw, rate)
  kwargs: dict[str, Any] = {}
  if draw.chance(0.5):
    kwargs["b1"] = draw.one("b1", [0.0, 0.5, 0.9, 0.99])
    kwargs["b2"] = draw.one("b2", [0.5, 0.9, 0.999, 0.99999] + [0.0] * (name != "adamnx"))
  if draw.chance(0.5):
    kwargs["eps"] = draw.one("eps", [0.0, 1e-30, 1e-8, 1e-3, 1.0])
    kwargs["eps_root"] = draw.one("eps_root", [0.0, 1e-16, 1e-3])
  if draw.chance(0.4):
    kwargs["mu_dtype"] = draw.one("mu_dtype", [None, jnp.bfloat16, jnp.float16, jnp.float32, "bfloat16"])
    kwargs["nu_dtype"] = draw.one("nu_dtype", [None, jnp.bfloat16, jnp.float32])
  if name != "nd_adam" and draw.chance(0.5):
    kwargs["weight_decay"] = draw.one("decay", [0.0, 0.01, 1.0, optax.constant_schedule(0.1)])
    kwargs["mask"] = draw.one(
      "mask", {"none": None, "weights": optax_ext.decay_mask(), "w": optax_ext.label_paths("w")}
    )
  if name == "exadam":
    kwargs["log_step"] = draw.chance(0.5)
  if name == "caadam":
    kwargs["rule"] = draw_rule(draw)
  if name == "nd_adam":
    kwargs["axes"] = draw_axes(draw)
    kwargs["vector_learning_rate"] = draw.one("vector_rate", [None, 0.0, 0.1])
  return name, getattr(optax_ext, name)(rate, **kwargs)


def draw_rule(draw: Draw) -> Any:
  rules = [optax_ext.Additive(), optax_ext.Multiplicative(), optax_ext.ByDepth(), optax_ext.ByDepth(-0.5)]
  rules += [optax_ext.Multiplicative(signed=True), optax_ext.Additive(1.0), optax_ext.Multiplicative(0.5)]
  rule = draw.one("rule", rules)
  return rule * draw.one("rule", rules) if draw.chance(0.3) else rule


def draw_axes(draw: Draw) -> Any:
  forms = {
    "default": None,
    "every but last": lambda path, leaf: tuple(range(leaf.ndim - 1)) or None,
    "last": lambda path, leaf: (-1,) if leaf.ndim else None,
    "none": lambda path, leaf: None,
  }
  return draw.one("axes", forms)


GAINS = {
  "constant 0.9": optax_ext.constant_gain(0.9),
  "constant 0.999": optax_ext.constant_gain(0.999),
  "adam 0.9": optax_ext.adam_gain(0.9),
  "adam 0": optax_ext.adam_gain(0.0),
  "adamnx": optax_ext.adamnx_gain(0.99),
  "adax": optax_ext.adax_gain(),
  "adafactor": optax_ext.adafactor_gain(),
}
DEBIAS = {
  "none": None,
  "standard": optax_ext.standard(0.9, 0.999),
  "cross": optax_ext.cross_moment(0.9, 0.999),
  "nesterov": optax_ext.nesterov(0.9, 0.999),
}


def draw_pieces(draw: Draw, rate: Any) -> optax.GradientTransformation:
  eps = draw.one("eps", [0.0, 1e-8, 1e-3])
  ratios = {"adam": optax_ext.adam_ratio(eps), "accelerated": optax_ext.accelerated_ratio(eps)}
  axes = draw_axes(draw) or (lambda path, leaf: None)
  vectors = draw.chance(0.4)
  draw.log.append(f"vectors={vectors}")
  moments = optax_ext.scale_by_moments(
    draw.one("mean", GAINS),
    draw.one("square", GAINS),
    debias=draw.one("debias", DEBIAS),
    ratio=draw.one("ratio", ratios),
    mu_dtype=draw.one("mu_dtype", [None, jnp.bfloat16, jnp.float32]),
    nu_dtype=draw.one("nu_dtype", [None, None, jnp.bfloat16]),
    square=optax_ext.per_vector(axes) if vectors else optax_ext.elementwise,
  )
  links = [optax_ext.project_out_params(axes)] * vectors + [moments]
  if draw.chance(0.5):
    links.append(optax_ext.scale_by_structure(draw_rule(draw)))
  if draw.chance(0.3):
    links.append(optax.add_decayed_weights(0.01))
  links.append(optax.scale_by_learning_rate(optax_ext.log_step_size(rate) if draw.chance(0.3) else rate))
  links += [optax_ext.renormalize_params(axes)] * vectors
  return optax_ext.cast_updates(optax.chain(*links))


WRAPPERS = {
  "none": lambda draw, tx: tx,
  "masked": lambda draw, tx: optax.masked(tx, optax_ext.label_paths("kernel|w|Dense")),
  "masked by shape": lambda draw, tx: optax.masked(tx, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
  "partition": lambda draw, tx: optax.partition(
    {True: tx, False: draw_optimizer(draw)[1]}, optax_ext.label_paths("kernel|bias|0")
  ),
  "frozen": lambda draw, tx: optax.partition({True: tx, False: optax.set_to_zero()}, optax_ext.label_paths("e")),
  "clip": lambda draw, tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
  "clip value": lambda draw, tx: optax.chain(optax.clip(1.0), tx),
  "MultiSteps": lambda draw, tx: optax.MultiSteps(tx, draw.one("every", [1, 2])).gradient_transformation(),
  "apply_if_finite": lambda draw, tx: optax.apply_if_finite(tx, 3),
  "conditionally_transform": lambda draw, tx: optax.conditionally_transform(
    tx, lambda step, **extra_args: jnp.mod(step, 2) == 0
  ),
  "with_extra_args_support": lambda draw, tx: optax.with_extra_args_support(tx),
  "chain": lambda draw, tx: optax.chain(optax.identity(), tx),
  "quantize_state": lambda draw, tx: draw_quantized(draw, tx),
}


def draw_quantized(draw: Draw, tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """All leaves in 8 bits but scalars, in rows or blocks, to the nearest code or by chance."""
  block, axis = draw.one("block", [None, None, 1, 2, 3]), draw.one("axis", [None, -1, -2])
  rounding = draw.one("rounding", {"nearest": None, "by chance": optax_ext.stochastic(7)})
  return optax_ext.quantize_state(tx, min_size=1, block=block, axis=axis, rounding=rounding)


def draw_split(draw: Draw, tx: optax.GradientTransformation) -> optax.GradientTransformation:
  bits = draw.one("bits", [16, 24, 32])
  nearest = bits > 16 and draw.chance(0.3)
  draw.log.append(f"nearest={nearest}")
  return optax_ext.split_weights(tx, bits, rounding=None if nearest else optax_ext.stochastic(0))


REFUSED = [  # most of it by optax itself, for optax.adamw too: the wrapper, what the message says
  ("clip value", "Clip received a complex value"),
  ("MultiSteps", "Casting from complex to real dtypes"),
  ("quantize_state", "int8 already, but"),  # ours, of one inside another
]


# one case


def run(seed: int, case: int, draw: Draw | None = None, always: str = "none") -> str:
  """Runs one case and returns its kind; raises AssertionError, or what was raised, if something breaks.

  The wrapper `always` is outermost, unless it was drawn.
  """
  warnings.filterwarnings(
    "ignore", "(scale_by_structure|nd_adam) (sees|keeps|starts)"
  )  # most trees here are no networks
  warnings.filterwarnings("ignore", "quantize_state stores no moment")  # of scalars
  warnings.filterwarnings("ignore", "(rounding has no effect|split_weights splits no parameter)")  # of any dtypes
  warnings.filterwarnings("ignore", "The regular expression")  # nor have they such names
  draw = draw or Draw(seed, case)
  params = draw_tree(draw)
  grads = [draw_gradients(draw, params) for _ in range(2)]
  name, tx = draw_optimizer(draw)
  wrappers = [draw.one("wrapper", list(WRAPPERS)) for _ in range(int(draw.rng.integers(0, 3)))]
  for wrapper in wrappers:
    tx = WRAPPERS[wrapper](draw, tx)
  if always not in wrappers:
    draw.log.append(f"wrapper={always}")
    wrappers.append(always)
    tx = WRAPPERS[always](draw, tx)
  split = draw.chance(0.25)  # outermost, since its updates are float32
  if split:
    wrappers.append("split_weights")
    tx = draw_split(draw, tx)
  # optax's wrappers with a lax.cond compile it again at every call that is not compiled
  compiled = draw.chance(0.15) or bool(set(wrappers) & {"MultiSteps", "apply_if_finite", "conditionally_transform"})
  draw.log.append(f"compiled={compiled}")
  update = jax.jit(tx.update) if compiled else tx.update

  state = tx.init(params)
  check_alike("The abstract state", jax.eval_shape(tx.init, params), state)
  for step_grads in grads:
    updates, new = update(step_grads, state, params)
    check_alike("The updates", jax.tree.map(as_applied, updates, params) if split else updates, params)
    check_alike("The state", new, state)
    check_no_nan("updates", updates)
    check_no_nan("the state", new)
    before, params, state = (params, state), optax.apply_updates(params, updates), new
    params = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(new), new, old), params, before[0])  # overflowed
  mixing = {"clip", "apply_if_finite"} & set(wrappers)  # these look at all leaves together
  if not mixing and len(jax.tree.leaves(params)) > 1:
    check_no_spread(draw, update, grads[-1], before[1], before[0], updates)
  return " + ".join([name, *sorted(set(wrappers) - {"none"})])


def as_applied(update: Any, param: Any) -> Any:
  """An update of split weights, which `optax.apply_updates` adds in float32, in the dtype of the sum."""
  wide = param.dtype in (jnp.bfloat16, jnp.float16) and update.dtype == jnp.float32
  return update.astype(param.dtype) if wide else update


def check_alike(what: str, got: Any, want: Any) -> None:
  assert jax.tree.structure(got) == jax.tree.structure(want), f"{what} changed structure"
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{what} changed from {b.dtype}{b.shape} to {a.dtype}{a.shape}"


def check_no_nan(what: str, tree: Any) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      assert not np.isnan(np.asarray(leaf)).any(), f"NaN in {what} at {jax.tree_util.keystr(path)}"


def check_no_spread(draw: Draw, update: Any, grads: Any, state: Any, params: Any, want: Any) -> None:
  """One leaf's gradient becomes NaN or infinite: the other leaves' updates stay."""
  leaves, treedef = jax.tree.flatten(grads)
  bad = int(draw.rng.integers(len(leaves)))
  spoiled = [
    jnp.full_like(leaf, draw.one("bad", [np.nan, np.inf])) if i == bad else leaf for i, leaf in enumerate(leaves)
  ]
  got, _ = update(treedef.unflatten(spoiled), state, params)
  for i, (a, b) in enumerate(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)):
    assert i == bad or np.array_equal(np.asarray(a), np.asarray(b)), f"a bad value in leaf {bad} changed leaf {i}"


def fuzz(
  cases: int, seed: int, first: int = 0, report: bool = False, always: str = "none"
) -> tuple[collections.Counter[str], list[str]]:
  """Runs cases; returns how many of each kind went well, and what was found."""
  kinds: collections.Counter[str] = collections.Counter()
  found, begin = [], time.time()
  for case in range(first, first + cases):
    draw = Draw(seed, case)
    try:
      kinds[run(seed, case, draw, always)] += 1
    except Exception as error:
      refused = [w for w, says in REFUSED if f"wrapper={w}" in draw.log and says in str(error)]
      if refused:
        kinds[f"refused by {refused[0]}"] += 1
        continue
      found.append(f"case {case}: {type(error).__name__}: {error}\n  {' '.join(draw.log)}")
      if report:
        print(found[-1], flush=True)
    if report and (case + 1 - first) % 500 == 0:
      print(f"{case + 1 - first} cases, {len(found)} findings, {time.time() - begin:.0f} s", flush=True)
    if (case + 1 - first) % 2000 == 0:
      jax.clear_caches()
  return kinds, found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
  parser.add_argument("--cases", type=int, default=10_000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--first", type=int, default=0, help="number of the first case")
  parser.add_argument("--wrapper", default="none", choices=WRAPPERS, help="a wrapper around every optimizer")
  parser.add_argument("--only", type=int, help="run one case and print what was drawn")
  args = parser.parse_args()
  if args.only is not None:
    draw = Draw(args.seed, args.only)
    try:
      print(run(args.seed, args.only, draw, args.wrapper))
    except Exception:
      traceback.print_exc()
    print("\n".join(draw.log))
    return
  begin = time.time()
  kinds, found = fuzz(args.cases, args.seed, args.first, report=True, always=args.wrapper)
  of = collections.Counter(kind.split(" + ")[0] for kind in kinds.elements())
  print(f"{args.cases} cases with seed {args.seed}: {dict(of)}")
  print(f"{len(kinds)} combinations of optimizer and wrappers went well")
  print(f"{len(found)} findings in {time.time() - begin:.0f} s")
  raise SystemExit(bool(found))


if __name__ == "__main__":
  main()
