"""Fashion-MNIST images: EXAdam's Tables 1 and 2 and CaAdam's Table II in small, every optimizer tuned.

    python benchmarks/papers/images.py
    python benchmarks/papers/images.py --schedule constant

10,000 training images, four strided convolutions with batch norm, 13 epochs (2,028 steps of 64 images), 5 fresh seeds.
Beside the tuned comparison, all at one learning rate: 1e-3, as in CaAdam's table (EXAdam's has 1e-4).
"""

import laboratory
from laboratory import share_cores, tuned

from optax_ext.compare import Optimizer, Protocol
from optax_ext.compare.names import named
from optax_ext.compare.papers import fashion_mnist

CENTRES = {"adadelta": 1.0, "rmsprop": 1e-3}  # optax's other optimizers in EXAdam's table


def main(arguments: list[str] | None = None) -> None:
  parser = laboratory.parser(__doc__)
  parser.add_argument("--schedule", default="cosine", choices=["cosine", "constant"], help="of the rate (cosine)")
  options = laboratory.parse(parser, arguments)
  problem = fashion_mnist(examples=(256, 128, 128) if options.slice else (10_000, 2_000, 10_000))
  rivals = [Optimizer(name, named(name, problem).make, centre) for name, centre in CENTRES.items()]
  names = ["adam", "adamw", "sgd", "exadam", "exadam_nolog"]
  names += ["caadam_additive", "caadam_multiplicative", "caadam_depth"]
  size = {"points": 1, "tuning_seeds": 1, "seeds": 2} if options.slice else {"points": 5, "tuning_seeds": 1, "seeds": 5}
  every = problem.steps_per_epoch
  protocol = Protocol((1 if options.slice else 13) * every, every, schedule=options.schedule)
  arms = [*names, *rivals][::3] if options.slice else [*names, *rivals]
  tuned(options.out / "images" / options.schedule, problem, arms, protocol, "step", single_rate=1e-3, **size)


if __name__ == "__main__":
  share_cores()
  main()
