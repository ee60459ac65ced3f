"""AdamNX's ablation, Tables 7 to 10: second-moment decays inside one otherwise equal AdamW.

    python benchmarks/papers/adamnx.py --problem images
    python benchmarks/papers/adamnx.py --problem text

Adam's decay (0.999), Adafactor's, AdaX's and AdamNX's, as published and for the length of this training: AdamNX with
T·(1−β₂)·|ln β₂| = 6.3 as in the paper. AdaX at the β that makes it AdamNX, β = β₂^{−(1−β₂)} − 1, is the same rule, and
is compared with it too: what they differ by is noise. Weight decay 0.01 on weights alone; the rate falls linearly to 1%
over the first 60%, as in the authors' programs; each decay at its own best rate.
"""

import jax
import jax.numpy as jnp
import laboratory
import optax
from exadam import problem_and_protocol
from laboratory import share_cores, tuned

from optax_ext import Gain, adafactor_gain, adam_gain, adamnx_gain, adax_gain, decay_mask, scale_by_moments
from optax_ext.compare import Optimizer, Problem, Protocol
from optax_ext.compare.problems.papers import fashion_mnist

MATCHED = 0.945  # β₂ for 2,000 steps
GAINS = {
  "adam": adam_gain(0.999),
  "adafactor": adafactor_gain(),
  "adax": adax_gain(1e-4),
  "adamnx": adamnx_gain(0.99),
  "adamnx, matched": adamnx_gain(MATCHED),
  "adax as adamnx, matched": adax_gain(MATCHED ** -(1 - MATCHED) - 1),
}
BASELINES = {"adam": (), "adax as adamnx, matched": ("adam", "adamnx, matched")}  # of others: Adam's decay


def arm(name: str, gain: Gain) -> Optimizer:
  """AdamW with another gain of the second moment."""

  def make(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    moments = scale_by_moments(adam_gain(0.9), gain)
    decay = optax.add_decayed_weights(0.01, decay_mask())
    return optax.chain(moments, decay, optax.scale_by_learning_rate(learning_rate))

  return Optimizer(name, make, 1e-3, baselines=BASELINES.get(name, ("adam",)))


def linear(steps: int):
  """1 at the start, 1% from 60% of the steps on."""

  def factor(count: jax.Array) -> jax.Array:
    return 1 - 0.99 * jnp.minimum(count / (0.6 * steps), 1)

  return factor


def images(small: bool) -> tuple[Problem, Protocol]:
  problem = fashion_mnist(examples=(256, 128, 128) if small else (10_000, 2_000, 10_000))
  every = problem.steps_per_epoch
  return problem, Protocol((1 if small else 13) * every, every, linear((1 if small else 13) * every), report="last")


def text(small: bool) -> tuple[Problem, Protocol]:
  problem, protocol = problem_and_protocol(small, full=False)
  return problem, Protocol(protocol.steps, protocol.evaluate_every, linear(protocol.steps))


def main(arguments: list[str] | None = None) -> None:
  parser = laboratory.parser(__doc__)
  parser.add_argument("--problem", default="images", choices=["images", "text"], help="what is trained (images)")
  options = laboratory.parse(parser, arguments)
  problem, protocol = {"images": images, "text": text}[options.problem](options.slice)
  seeds = 5 if options.problem == "images" else 3
  size = (
    {"points": 1, "tuning_seeds": 1, "seeds": 2} if options.slice else {"points": 5, "tuning_seeds": 1, "seeds": seeds}
  )
  arms = [arm(name, gain) for name, gain in GAINS.items()]
  batching = "step" if options.problem == "images" else "map"
  folder = options.out / "adamnx" / options.problem
  tuned(folder, problem, arms[::3] if options.slice else arms, protocol, batching, single_rate=1e-3, **size)


if __name__ == "__main__":
  share_cores()
  main()
