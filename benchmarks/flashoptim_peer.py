"""Training in few bytes a parameter beside flashoptim-jax 0.1.0, which has AdamW, SGD and Lion in 2 + 1 + 2 bytes.

    python -m venv ENV && ENV/bin/pip install -e ".[aot]" flashoptim-jax==0.1.0
    ENV/bin/python benchmarks/flashoptim_peer.py

Four comparisons: bytes kept and moved by one step, compiled ahead of time; errors of stored weights and moments;
hard gradients; decay without gradients. `--quick` leaves the first out. Writes `benchmarks/results/flashoptim_peer.md`
and `flashoptim_peer.json`, every number of the run. The table of goals says where this project needs more bytes or
makes larger errors.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parent / "speed"))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ahead_of_time import cost_of
from cases import Case
from flashoptim_jax import (  # pyright: ignore[reportMissingImports]
  dequantize_momentum,
  dequantize_variance,
  flash_adamw,
  quantize_momentum,
  quantize_variance,
  reconstruct_weights,
  set_fp32_params,
)
from report import markdown_table
from storage_errors import (
  HARD,
  RATE,
  SHAPE,
  STEPS,
  Contender,
  Storage,
  beside,
  decayed,
  drift,
  hard_gradients,
  moment_errors,
  weight_errors,
)
from targets import without_accelerators

import optax_ext
from optax_ext._memory.codes import decode, encode, scale_for, scale_shape
from optax_ext._memory.hashes import half_words, places_of

RESULTS = pathlib.Path(__file__).parent / "results"
TARGETS = ("v5e", "v6e", "tpu7x", "H100")
SHOWN = (-40, -20, 0, 10)  # exponents, in the tables
BF16 = jnp.bfloat16


def theirs(rate: float, decay: float, **options: Any) -> Contender:
  """Theirs, on the path that runs on every device."""
  tx = flash_adamw(rate, weight_decay=decay, fused=False, **options)

  def split(weights: Any, params: Any, state: Any) -> tuple[Any, Any]:
    params, ecc = set_fp32_params(weights, params, options.get("master_weight_bits", 24))
    return params, state._replace(ecc=ecc)

  return Contender(tx.init, tx.step, lambda params, state: reconstruct_weights(params, state.ecc), split)


def ours(tx: optax.GradientTransformation) -> Contender:
  def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    return optax_ext.update_and_apply(tx, grads, state, params)

  return Contender(tx.init, step, optax_ext.join_weights, optax_ext.split)


def plain(tx: optax.GradientTransformation, dtype: Any) -> Contender:
  """An optimizer of optax as it is, on weights of this dtype."""

  def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  wide = lambda params, state: jax.tree.map(lambda x: x.astype(jnp.float32), params)
  return Contender(tx.init, step, wide, lambda weights, params, state: (weights, state), dtype)


def in_8_bits(rate: float, decay: float, **options: Any) -> optax.GradientTransformation:
  return optax_ext.quantize_state(optax.adamw(rate, weight_decay=decay), **options)


# From the rate and the decay to a contender.
THEIRS, OURS = "flashoptim-jax, 24 bits", "here, 24 bits"
CONTENDERS: dict[str, Callable[[float, float], Contender]] = {
  THEIRS: theirs,
  "flashoptim-jax, 32 bits": lambda rate, decay: theirs(rate, decay, master_weight_bits=32),
  OURS: lambda rate, decay: ours(optax_ext.split_weights(in_8_bits(rate, decay))),
  "here, 24 bits, to the nearest": lambda rate, decay: ours(
    optax_ext.split_weights(in_8_bits(rate, decay), rounding=None)
  ),
  "here, 32 bits": lambda rate, decay: ours(optax_ext.split_weights(in_8_bits(rate, decay), bits=32)),
  "here, 16 bits": lambda rate, decay: ours(optax_ext.split_weights(in_8_bits(rate, decay), bits=16)),
}
BFLOAT16 = "optax.adamw, bfloat16 throughout"


def here_in_codes(dtype: Any, block: int | None) -> Storage:
  """A moment in our 8 bits, and back."""

  def there_and_back(x: jax.Array) -> jax.Array:
    scale = scale_for(x, scale_shape(x.shape, -1, block), dtype)
    return decode(encode(x, scale, dtype), scale)

  return there_and_back


STORAGES = {
  "flashoptim-jax": (
    lambda m: dequantize_momentum(quantize_momentum(m)),
    lambda v: dequantize_variance(quantize_variance(v)),
  ),
  "here, rows of 4096": (here_in_codes(jnp.int8, None), here_in_codes(jnp.uint8, None)),
  "here, blocks of 128": (here_in_codes(jnp.int8, 128), here_in_codes(jnp.uint8, 128)),
}


def by_chance(v: jax.Array, t: jax.Array) -> jax.Array:
  """A second moment in our 8 bits, rounded by chance in step t, and back."""
  key = jax.random.key_data(jax.random.fold_in(jax.random.key(0), t))
  scale = scale_for(v, scale_shape(v.shape, -1, None), jnp.uint8)
  return decode(encode(v, scale, jnp.uint8, half_words(key, places_of(v.shape), 1)), scale)


DRIFTING = {name: lambda v, t, square=square: square(v) for name, (_, square) in STORAGES.items()} | {
  "here, rows of 4096, by chance": by_chance
}


def steps_compiled() -> dict[str, tuple[str, Case, tuple[str, ...]]]:
  """Steps: which row of the table, what is compiled, and for which targets."""
  step = lambda tx, grads, state, params: tx.step(params, state, grads)
  of = lambda **options: Case(flash_adamw(RATE, **options), step=step, dtype=BF16)
  row = optax_ext.split_weights(in_8_bits(RATE, 0.01))
  block = optax_ext.split_weights(in_8_bits(RATE, 0.01, block=128, axis=-1, kernel="pallas"))
  tpu = optax_ext.split_weights(in_8_bits(RATE, 0.01, kernel="pallas"))
  fused = optax_ext.update_and_apply
  return {
    "flashoptim-jax, portable": ("portable", of(fused=False), TARGETS),
    "here, a scale per row, portable": ("portable", Case(row, step=fused, dtype=BF16), TARGETS),
    "flashoptim-jax, kernel": ("kernel", of(fused=True), ("H100",)),
    "here, blocks of 128, kernel": ("kernel", Case(block, step=fused, dtype=BF16), ("H100",)),
    "here, a scale per row, kernel": ("kernel", Case(tpu, step=fused, dtype=BF16), TARGETS[:3]),
  }


def costs(targets: Sequence[str]) -> dict[str, dict[str, Any]]:
  """By step and target: what it costs, or why it does not compile."""
  found: dict[str, dict[str, Any]] = {}
  for name, (_, case, its_targets) in steps_compiled().items():
    for target in (target for target in its_targets if target in targets):
      try:
        cost = dataclasses.asdict(cost_of(case, target)) | {"kept": 0.0}
        cost["kept"] = cost["state"] + jnp.dtype(BF16).itemsize
        cost["temporaries"] *= jnp.dtype(BF16).itemsize  # bytes per parameter
      except Exception as error:  # of another package, or of a compiler
        cost = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
      found.setdefault(name, {})[target] = cost
      print(name, target, cost, flush=True)
  return found


def measured() -> dict[str, Any]:
  """All that is computed on this machine."""
  made = {name: make(RATE, 0.01) for name, make in CONTENDERS.items()}
  print("weights", flush=True)
  weights = {name: weight_errors(contender) for name, contender in made.items() if name != "here, 16 bits"}
  print("moments", flush=True)
  moments = {name: moment_errors(*storage) for name, storage in STORAGES.items()}
  print("drift", flush=True)
  drifts = {name: {str(n): drift(square, n) for n in (0, 2)} for name, square in DRIFTING.items()}
  print("hard gradients", flush=True)
  adam = hard_gradients(plain(optax.adamw(RATE, weight_decay=0.01), jnp.float32))
  hard = {}
  for name in (THEIRS, OURS):
    hard[name] = {kind: beside(adam[kind], of_steps) for kind, of_steps in hard_gradients(made[name]).items()}
  return {"weights": weights, "moments": moments, "drift": drifts, "hard": hard, "decay": decays()}


def decays() -> dict[str, dict[str, float]]:
  """By contender: what decay alone leaves, of weights drawn normally and of a weight of 1, and what it should."""
  normal = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), BF16)
  ones = jnp.ones(SHAPE, BF16)
  bfloat16 = {BFLOAT16: lambda rate, decay: plain(optax.adamw(rate, weight_decay=decay), BF16)}
  found = {"exact": {"normal": (1 - 1e-4) ** 2000, "spread": 0.0, "one": (1 - 5e-6) ** 4000}}
  for name, make in (CONTENDERS | bfloat16).items():
    left = decayed(make(1e-3, 0.1), normal, 2000) / np.asarray(normal, np.float32)
    one = decayed(make(1e-4, 0.05), ones, 4000)
    found[name] = {"normal": float(left.mean()), "spread": float(left.std()), "one": float(one.mean())}
  return found


def cost_table(found: dict[str, Any]) -> str:
  rows = []
  for name, of_targets in found.items():
    of = lambda what, of_targets=of_targets: [
      f"{of_targets[target][what]:.2f}" if what in of_targets.get(target, {}) else "–" for target in TARGETS
    ]
    kept = next((f"{cost['kept']:.3f}" for cost in of_targets.values() if "kept" in cost), "–")
    rows.append([name, kept, *of("moved"), *of("temporaries")])
  return markdown_table(["step", "kept", *TARGETS, *(f"temporaries, {target}" for target in TARGETS)], rows)


def weight_table(found: dict[str, Any]) -> str:
  rows = []
  for name, by_exponent in found.items():
    norm = [f"{by_exponent[e]['norm'] * 2**16:.3f}" for e in SHOWN]
    worst = max(of["largest"] for of in by_exponent.values())
    rows.append([name, *norm, f"{worst * 2**16:.3f}"])
  return markdown_table(["weights", *(f"2^{e}" for e in SHOWN), "largest of all"], rows)


def moment_table(found: dict[str, Any], kind: str, what: str) -> str:
  rows = []
  for spread in next(iter(found.values()))[kind]:
    for name, of in found.items():
      cells = [of[kind][spread][exponent][what] for exponent in SHOWN]
      rows.append([f"{spread} decades, {name}", *(f"{100 * cell:.3g} %" for cell in cells)])
  titles = {"first": "first moment", "second": "second moment", "step": "m/√v"}
  return markdown_table([titles[kind], *(f"2^{e}" for e in SHOWN)], rows)


def drift_table(found: dict[str, Any]) -> str:
  rows = []
  for name, by_spread in found.items():
    for decades, of in by_spread.items():
      cells = f"{of['mean'] - 1:+.1%}", f"{of['deviation']:.1%}", f"{of['of the step'] - 1:+.1%}"
      rows.append([f"{decades} decades, {name}", *cells])
  return markdown_table(["second moment", "mean error", "its deviation", "what it makes of a step"], rows)


def hard_table(found: dict[str, Any]) -> str:
  rows = []
  for kind in HARD:
    for name, of in found.items():
      it = of[kind]
      far = [f"{it[what]:.3g}" if it[what] is not None else "–" for what in ("mean", "largest")]
      rows.append([kind, name, str(it["first"] or "never"), str(it["not finite"]), *far])
  return markdown_table(["gradients", "", "first wrong step", "not finite", "mean distance", "largest"], rows)


def decay_table(found: dict[str, Any]) -> str:
  rows = [[name, f"{of['normal']:.4f}", f"{of['spread']:.4f}", f"{of['one']:.4f}"] for name, of in found.items()]
  return markdown_table(["", "normal weights: mean of what is left", "its deviation", "a weight of 1"], rows)


def goals(found: dict[str, Any]) -> str:
  """Every comparison of a number of theirs with ours where less is better, counted, and those that we lose."""
  pairs: list[tuple[str, float, float]] = []  # what, theirs, ours
  if "costs" in found:
    kinds = {name: kind for name, (kind, _, _) in steps_compiled().items()}
    cost = found["costs"]
    for name, of_targets in cost.items():
      rival = next(rival for rival in cost if kinds[rival] == kinds[name] and rival.startswith("flash"))
      for target, mine in of_targets.items():
        other = cost[rival].get(target, {})
        for what in ("kept", "moved", "temporaries"):
          if name != rival and what in mine and what in other:
            pairs.append((f"bytes {what}, {name}, {target}", other[what], mine[what]))
  for bits in ("24 bits", "32 bits"):
    mine = {name: of for name, of in found["weights"].items() if name.startswith(f"here, {bits}")}
    for name, by_exponent in mine.items():
      for exponent, of in by_exponent.items():
        other = found["weights"][f"flashoptim-jax, {bits}"][exponent]["norm"]
        pairs.append((f"weights, {name}, 2^{exponent}", other, of["norm"]))
  for name, of in found["moments"].items():
    if not name.startswith("flash"):
      for kind, spreads in of.items():
        for spread, by_exponent in spreads.items():
          for exponent, mine in by_exponent.items():
            other = found["moments"]["flashoptim-jax"][kind][spread][exponent]
            for what in ("norm", "median"):
              label = f"{kind} moment" if kind != "step" else "m/√v"
              pairs.append((f"{label}, {what}, {name}, {spread} decades, 2^{exponent}", other[what], mine[what]))
  far = lambda it: it["mean"] if it["mean"] is not None and not it["not finite"] else float("inf")
  for kind in HARD:
    pairs.append((f"distance from Adam, {kind}", far(found["hard"][THEIRS][kind]), far(found["hard"][OURS][kind])))
  for name, by_spread in found["drift"].items():
    for decades, of in by_spread.items():
      if not name.startswith("flash"):
        other = found["drift"]["flashoptim-jax"][decades]
        pairs.append((f"drift, {name}, {decades} decades", abs(other["mean"] - 1), abs(of["mean"] - 1)))
  for what in ("normal", "one"):
    exact = found["decay"]["exact"][what]
    off = lambda name, what=what, exact=exact: abs(found["decay"][name][what] - exact)
    pairs.append((f"decay, {what}", off(THEIRS), off(OURS)))
  return _verdict(pairs)


def _verdict(pairs: list[tuple[str, float, float]]) -> str:
  groups: dict[str, list[tuple[float, float]]] = {}
  for what, other, mine in pairs:
    groups.setdefault(what.rsplit(", 2^", 1)[0], []).append((other, mine))
  rows = []
  for what, of in groups.items():
    met = sum(mine <= other for other, mine in of)
    ratios = [mine / other for other, mine in of if np.isfinite(mine) and np.isfinite(other) and other]
    middle = f"{np.median(ratios):.3g}" if ratios else "–"
    rows.append([what, f"{met} of {len(of)}", middle, "yes" if met == len(of) else "**no**"])
  return markdown_table(["no more than theirs", "cases", "ours / theirs, median", "all"], rows)


TEXT = """\
# Beside flashoptim-jax

{head}

AdamW. Theirs are `flash_adamw` (24 bits by default: int8 residual, float16 scales for groups of 32); ours are
`split_weights(quantize_state(optax.adamw(…)))`, its residual rounded by chance unless a row says otherwise. Weights and
gradients are bfloat16.

## Bytes

For each parameter, of one donated step on 4 weights of 4096 × 4096: kept between steps in all (weights, residual,
moments), moved, and needed besides during the step. Compiled ahead of time; nothing ran.

{costs}

## Weights, split and joined

Root mean square of the errors as a share of the weights', in units of 2⁻¹⁶; weights in ±[2ᵉ, 2ᵉ⁺¹). At the right the
largest relative error of a weight at any e from −40 to 10.

{weights}

## Moments, stored and read

Normal numbers times 2ᵉ, their sizes spread over decades within a row; for the second moment the square. First: root
mean square of the errors as a share of the numbers'.

{norms}

The median of the errors, each as a share of its number: what numbers far below their row's largest see.

{medians}

## The second moment of a long run

3,000 steps of normal gradients with decay 0.999, the moment stored in every step, beside float32.

{drift}

## Hard gradients

{steps} steps at rate {rate:g} on 16 × 512 normal weights; distances from Adam in float32, in rates. Wrong is a weight
that is not finite, or 100 rates away. A mean over what is finite.

{hard}

## Decay without gradients

2,000 steps, decay 0.1, rate 1e-3, normal weights; and 4,000 steps, decay 0.05, rate 1e-4, a weight of 1.

{decay}

## Goals

Is no number of ours larger than theirs? Cases are targets or the exponents from −40 to 10. The second column counts
cases where ours is no larger.

{goals}
"""


def report(found: dict[str, Any], head: str) -> str:
  moments = found["moments"]
  join = lambda what: "\n\n".join(moment_table(moments, kind, what) for kind in ("first", "second", "step"))
  return TEXT.format(
    head=head,
    costs=cost_table(found["costs"]) if "costs" in found else "Left out by `--quick`.",
    weights=weight_table(found["weights"]),
    norms=join("norm"),
    medians=join("median"),
    drift=drift_table(found["drift"]),
    steps=STEPS,
    rate=RATE,
    hard=hard_table(found["hard"]),
    decay=decay_table(found["decay"]),
    goals=goals(found),
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--quick", action="store_true", help="compile nothing for other devices, and write nothing")
  parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
  options = parser.parse_args()
  quick = options.quick
  without_accelerators()
  found = measured() | ({} if quick else {"costs": costs(options.targets)})
  command = " ".join(["python benchmarks/flashoptim_peer.py", *sys.argv[1:]])
  head = (
    f"`{command}`, {datetime.date.today()}, flashoptim-jax 0.1.0, jax {jax.__version__}, optax {optax.__version__}."
  )
  text = report(found, head)
  print(text)
  if not quick:
    (RESULTS / "flashoptim_peer.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "flashoptim_peer.md").write_text(text)


if __name__ == "__main__":
  main()
