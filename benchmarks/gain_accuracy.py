"""Largest relative error of each gain in float32 against extended precision, over the steps 1 to 10⁷.

Run from the repository root, with each version of jax, and append to benchmarks/results/gain_accuracy.md:

    python benchmarks/gain_accuracy.py
"""

import datetime
import platform

import jax
import jax.numpy as jnp
import numpy as np

import optax_ext

T = np.unique(np.round(np.logspace(0, 7, 20_000)).astype(np.int64))
Long = np.longdouble


def growing(growth):
  """e^{L(t−1)}·expm1(L)/expm1(L·t), the exact AdamNX and AdaX gain."""
  return np.exp(growth * (T - 1)) * np.expm1(growth) / np.expm1(growth * T)


def naive_adamnx(b2):
  """1 − β₂,ₜ as the paper prints it, in float32."""
  k = np.float32(1 - b2)
  return lambda t: 1 - (1 - jnp.float32(b2) ** (k * (t - 1))) / (1 - jnp.float32(b2) ** (k * t))


ROWS = [
  ("adam_gain", 0.9, optax_ext.adam_gain, lambda b: (1 - b) / (1 - b ** (Long(1) * T))),
  ("adam_gain", 0.999, optax_ext.adam_gain, lambda b: (1 - b) / (1 - b ** (Long(1) * T))),
  ("adamnx_gain", 1e-6, optax_ext.adamnx_gain, lambda b: growing((1 - b) * np.log(b))),
  ("adamnx_gain", 0.5, optax_ext.adamnx_gain, lambda b: growing((1 - b) * np.log(b))),
  ("adamnx_gain", 0.9, optax_ext.adamnx_gain, lambda b: growing((1 - b) * np.log(b))),
  ("adamnx_gain", 0.99, optax_ext.adamnx_gain, lambda b: growing((1 - b) * np.log(b))),
  ("adamnx_gain", 0.999, optax_ext.adamnx_gain, lambda b: growing((1 - b) * np.log(b))),
  ("adax_gain", 1e-4, optax_ext.adax_gain, lambda b: growing(-np.log1p(b))),
  ("adax_gain", 1e-2, optax_ext.adax_gain, lambda b: growing(-np.log1p(b))),
  ("adax_gain", 0.5, optax_ext.adax_gain, lambda b: growing(-np.log1p(b))),
  ("adax_gain", 7.5e5, optax_ext.adax_gain, lambda b: growing(-np.log1p(b))),
  ("adafactor_gain", 0.8, optax_ext.adafactor_gain, lambda c: (Long(1) * T) ** -c),
  ("AdamNX as printed", 0.99, naive_adamnx, lambda b: growing((1 - b) * np.log(b))),
]


def error(got, exact, up_to):
  seen = (exact > 1.2e-38) & (up_to >= T)
  return float((np.abs(np.asarray(got, np.float64) - exact)[seen] / exact[seen]).max())


def main():
  versions = f"jax {jax.__version__}, Python {platform.python_version()}"
  print(f"`python benchmarks/gain_accuracy.py`, {datetime.date.today()}, {versions}, CPU\n")
  print(
    "The last four columns are shares of the bound 1e-6 + 1e-7·|ln w|, for Python numbers and traced ones, compiled and"
    " not.\n"
  )
  print("| gain | parameter | w(10⁴) | largest error to t=10⁴ | to t=10⁷ | number, jit | eager | traced, jit | eager |")
  print("|---|---|---|---|---|---|---|---|---|")
  t = jnp.asarray(T, jnp.int32)
  for name, value, make, exact in ROWS:
    want, received = exact(Long(value)), exact(Long(np.float32(value)))
    got, as_written = jax.jit(make(value))(t), make(value)(t)
    of_traced, number = lambda v, t, make=make: make(v)(t), jnp.float32(value)

    def share(got, want):
      seen = want > 1.2e-38
      bound = 1e-6 + 1e-7 * np.abs(np.log(want[seen]))
      return f"{float((np.abs(np.asarray(got, np.float64) - want)[seen] / want[seen] / bound).max()):.2f}"

    w = float(np.interp(1e4, T, np.asarray(want, np.float64)))
    cells = [f"{error(got, want, up_to):.1e}" for up_to in (1e4, 1e7)]
    shares = ["–"] * 4
    if "printed" not in name:
      traced = jax.jit(of_traced)(number, t), of_traced(number, t)
      shares = [share(got, want), share(as_written, want), *(share(one, received) for one in traced)]
    print(f"| `{name}` | {value:g} | {w:.2e} | {' | '.join(cells + shares)} |")


if __name__ == "__main__":
  main()
