"""GPT-2 with 124 million parameters, trained for a few hundred steps in float32 and in few bytes: loss, memory, time.

    OPTAX_EXT_DATA=FOLDER python benchmarks/gpt2.py
    python benchmarks/gpt2.py --tiny

12 layers of width 768 in one scan, contexts of 1,024, 50,304 tokens, products in bfloat16. The text is tiny
Shakespeare, by character, where FOLDER holds tinyshakespeare.txt; the vocabulary keeps GPT-2's size. Without
OPTAX_EXT_DATA the text is made up, a walk among 64 tokens in which each follows few others; the results say which. Each
arm runs in a process of its own, since peaks of memory are those of a process, and is one line of JSON in `gpt2.jsonl`,
with the losses of all steps. A second call does what is missing. `--tiny` is for a CPU: 2 layers of width 64, 20 steps,
two arms, all in one process.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import optax_ext
from optax_ext.compare.problems.data import VARIABLE, tiny_shakespeare

BF16 = jnp.bfloat16
DECAY, PEAK = 0.1, 6e-4  # as nanoGPT trains it, but for the length


@dataclasses.dataclass(frozen=True)
class Size:
  """A model, its batches, and for how many steps it is trained."""

  layers: int = 12
  width: int = 768
  heads: int = 12
  vocabulary: int = 50_304
  context: int = 1024
  batch: int = 8
  steps: int = 300
  held_out: int = 4  # batches


TINY = Size(layers=2, width=64, heads=2, vocabulary=128, context=32, batch=4, steps=20, held_out=2)


class Block(nn.Module):
  """Causal self-attention and an MLP, each after a norm; a step of a scan over layers."""

  size: Size

  @nn.compact
  def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
    """The sum of x, what its places tell each other, and what each makes of that."""
    size, normal = self.size, nn.initializers.normal
    dense = lambda features, deviation=0.02: nn.Dense(features, dtype=BF16, kernel_init=normal(deviation))
    residual = 0.02 / (2 * size.layers) ** 0.5
    heads = lambda y: y.reshape(*y.shape[:-1], size.heads, -1)
    query, key, value = map(heads, jnp.split(dense(3 * size.width)(nn.LayerNorm()(x)), 3, axis=-1))
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    x = x + dense(size.width, residual)(mixed.reshape(x.shape))
    return x + dense(size.width, residual)(nn.gelu(dense(4 * size.width)(nn.LayerNorm()(x)))), None


class GPT2(nn.Module):
  """The logits of the next token; embedding and output share their weights."""

  size: Size

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """(batch, length) to (batch, length, vocabulary), float32."""
    size, normal = self.size, nn.initializers.normal(0.02)
    embed = nn.Embed(size.vocabulary, size.width, dtype=BF16, embedding_init=normal)
    x = embed(tokens) + self.param("positions", normal, (size.context, size.width)).astype(BF16)
    layers = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=size.layers)
    x, _ = layers(size, name="layers")(x, None)
    return embed.attend(nn.LayerNorm()(x)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Arm:
  """How a run is stored: dtype of the weights, and what is made of AdamW."""

  dtype: Any
  optimizer: Callable[[Any], optax.GradientTransformation]


def adamw(rate: Any) -> optax.GradientTransformation:
  return optax.adamw(rate, b2=0.95, weight_decay=DECAY)


def adamw_in_16_bits(rate: Any) -> optax.GradientTransformation:
  """The same with bfloat16 moments, rounded by chance."""
  moments = optax_ext.scale_by_moments(
    optax_ext.constant_gain(0.9),
    optax_ext.constant_gain(0.95),
    debias=optax_ext.standard(0.9, 0.95),
    mu_dtype=BF16,
    nu_dtype=BF16,
    rounding=optax_ext.stochastic(1),
  )
  return optax.chain(moments, optax.add_decayed_weights(DECAY), optax.scale_by_learning_rate(rate))


ARMS = {
  "float32": Arm(jnp.float32, adamw),
  "split, 8-bit moments": Arm(BF16, lambda rate: optax_ext.split_weights(optax_ext.quantize_state(adamw(rate)))),
  "split, bfloat16 moments": Arm(BF16, lambda rate: optax_ext.split_weights(adamw_in_16_bits(rate))),
}


def text() -> tuple[str, np.ndarray]:
  """What it is, and its tokens."""
  if os.environ.get(VARIABLE):
    return "tiny Shakespeare, by character", tiny_shakespeare()
  rng = np.random.default_rng(0)
  likely = rng.integers(0, 64, (64, 4))  # which tokens may follow each
  tokens, choices = np.zeros(500_000, np.int32), rng.choice(4, 500_000, p=[0.6, 0.2, 0.15, 0.05])
  for i in range(1, len(tokens)):
    tokens[i] = likely[tokens[i - 1], choices[i]]
  return "made up", tokens


def train(arm: str, size: Size) -> dict[str, Any]:
  """One run: losses, bytes, milliseconds."""
  source, tokens = text()
  seen = int(0.9 * len(tokens))
  rng, model, way = np.random.default_rng(0), GPT2(size), ARMS[arm]
  window = np.arange(size.context + 1)
  windows = lambda starts: tokens[starts[:, None] + window]
  last = len(tokens) - size.context - 1
  held_out = np.split(windows(np.linspace(seen, last, size.held_out * size.batch).astype(int)), size.held_out)
  warm = max(1, size.steps // 10)
  tx = way.optimizer(optax.warmup_cosine_decay_schedule(0.0, PEAK, warm, size.steps, PEAK / 10))

  def loss(params: Any, batch: jax.Array) -> jax.Array:
    logits: Any = model.apply({"params": params}, batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

  def init(key: jax.Array) -> tuple[Any, Any]:
    params = model.init(key, jnp.zeros((1, size.context), jnp.int32))["params"]
    params = jax.tree.map(lambda weight: weight.astype(way.dtype), params)
    return params, tx.init(params)

  def step(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any, jax.Array]:
    value, grads = jax.value_and_grad(loss)(params, batch)
    return *optax_ext.update_and_apply(tx, grads, state, params), value

  params, state = jax.jit(init)(jax.random.key(0))
  kept = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
  begin = time.perf_counter()
  example = jax.ShapeDtypeStruct((size.batch, size.context + 1), jnp.int32)
  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, example).compile()
  seconds_to_compile = time.perf_counter() - begin
  losses, times = [], []
  for _ in range(size.steps):
    batch = jnp.asarray(windows(rng.integers(0, seen - size.context, size.batch)))
    begin = time.perf_counter()
    params, state, value = compiled(params, state, batch)
    losses.append(float(value))
    times.append(time.perf_counter() - begin)
  peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  memory: Any = compiled.memory_analysis()
  evaluate = jax.jit(loss)
  joined = params if way.dtype == jnp.float32 else optax_ext.join_weights(params, state)
  return {
    "arm": arm,
    "text": source,
    "device": jax.devices()[0].device_kind,
    "parameters": parameters,
    "bytes kept per parameter": kept / parameters,
    "peak GiB": peak and peak / 2**30,  # of the process until the last step; None where the platform does not count
    "compiled GiB": (memory.argument_size_in_bytes + memory.temp_size_in_bytes)
    / 2**30,  # one step's arguments and temporaries
    "ms per step": 1e3 * statistics.median(times),
    "seconds to compile": seconds_to_compile,
    "held-out loss": float(np.mean([evaluate(joined, batch) for batch in held_out])),
    "losses": [round(value, 4) for value in losses],
  }


def record(path: pathlib.Path, run: dict[str, Any]) -> None:
  with path.open("a") as file:
    file.write(json.dumps(run) + "\n")


def finished(path: pathlib.Path, size: Size) -> dict[str, dict[str, Any]]:
  lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
  return {run["arm"]: run for run in lines if len(run["losses"]) == size.steps}


def table(runs: dict[str, dict[str, Any]], size: Size) -> str:
  if not runs:
    return "GPT-2: no run is finished.\n"
  one = next(iter(runs.values()))
  part = max(1, size.steps // 10)
  lines = [
    f"GPT-2, {one['parameters'] / 1e6:.1f} million parameters, {size.steps} steps of {size.batch} × {size.context} "
    f"tokens, text: {one['text']}; {one['device']}. Training loss is the mean over the last {part} steps.",
    "",
    "| arm | bytes kept per parameter | peak, GiB | compiled step, GiB | ms per step | training loss | held-out loss |",
    "|---|---:|---:|---:|---:|---:|---:|",
  ]
  for name, run in runs.items():
    peak = f"{run['peak GiB']:.2f}" if run["peak GiB"] else "–"
    loss = f"{np.mean(run['losses'][-part:]):.4f} | {run['held-out loss']:.4f}"
    cells = f"{run['bytes kept per parameter']:.2f} | {peak} | {run['compiled GiB']:.2f}"
    lines.append(f"| {name} | {cells} | {run['ms per step']:.1f} | {loss} |")
  return "\n".join([*lines, ""])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--steps", type=int, help="(300; 20 if tiny)")
  parser.add_argument("--arm", choices=ARMS, help="this one, in this process")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results" / "device")
  options = parser.parse_args()
  size = TINY if options.tiny else Size()
  size = dataclasses.replace(size, steps=options.steps or size.steps)
  options.out.mkdir(parents=True, exist_ok=True)
  path = options.out / "gpt2.jsonl"
  if options.arm:
    record(path, train(options.arm, size))
    return
  for arm in list(ARMS)[:2] if options.tiny else ARMS:
    if arm in finished(path, size):
      continue
    if options.tiny:
      record(path, train(arm, size))
    else:
      subprocess.run([sys.executable, *sys.argv, "--arm", arm], check=True)
    (options.out / "gpt2.md").write_text(table(finished(path, size), size))
  print(table(finished(path, size), size))


if __name__ == "__main__":
  main()
