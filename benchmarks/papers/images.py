"""Fashion-MNIST images: EXAdam's Tables 1 and 2 and CaAdam's Table II in small, every optimizer tuned.

    python benchmarks/papers/images.py
    python benchmarks/papers/images.py --schedule constant
    python benchmarks/papers/images.py --schedule constant --tuning-seeds 3
    python benchmarks/papers/images.py --resnet fashion-mnist
    python benchmarks/papers/images.py --resnet cifar-10

10,000 training images, four strided convolutions with batch norm, 13 epochs (2,028 steps of 64 images), 5 fresh seeds.
Beside the tuned comparison, all at one learning rate: 1e-3, as in CaAdam's table, and EXAdam and Adam at 1e-4, as in
EXAdam's. One tuning seed chooses the rates; with `--tuning-seeds` several do, for Adam and three of the papers'
optimizers. With `--resnet`, for a GPU, a ResNet-20 on all training images but 5,000, 30 epochs.
"""

import argparse

import laboratory
from laboratory import report, share_cores, tuned

from optax_ext.compare import Optimizer, Problem, Protocol
from optax_ext.compare.names import named
from optax_ext.compare.problems.papers import ResNet, cifar_10, fashion_mnist

CENTRES = {"adadelta": 1.0, "rmsprop": 1e-3}  # optax's other optimizers in EXAdam's table
FEW = ("adam", "exadam", "caadam_multiplicative", "caadam_depth")
EXADAMS = {"adam": 1e-4, "exadam": 1e-4}  # the rate of EXAdam's table


def main(arguments: list[str] | None = None) -> None:
  parser = laboratory.parser(__doc__)
  parser.add_argument("--schedule", default="cosine", choices=["cosine", "constant"], help="of the rate (cosine)")
  parser.add_argument("--resnet", choices=["fashion-mnist", "cifar-10"], help="a ResNet-20 on these, for a GPU")
  parser.add_argument(
    "--tuning-seeds", type=int, default=1, help="choose the rates; several: of Adam and three others alone (1)"
  )
  options = laboratory.parse(parser, arguments)
  problem, epochs, name = problem_of(options)
  rivals = [Optimizer(name, named(name, problem).make, centre) for name, centre in CENTRES.items()]
  names = ["adam", "adamw", "adamax", "nadam", "sgd", "exadam", "exadam_nolog"]
  names += ["caadam_additive", "caadam_multiplicative", "caadam_depth"]
  size = {"points": 1, "seeds": 2} if options.slice else {"points": 5, "seeds": 5}
  every = problem.steps_per_epoch
  protocol = Protocol((1 if options.slice else epochs) * every, every, schedule=options.schedule)
  arms = [*names, *rivals][::4] if options.slice else [*names, *rivals]
  if options.tuning_seeds > 1:
    name, arms = f"{name}-{options.tuning_seeds}-tuning-seeds", list(FEW)
  folder = options.out / "images" / name
  report(folder, problem, protocol, {of: named(of, problem) for of in EXADAMS}, size["seeds"], EXADAMS, "step")
  tuned(folder, problem, arms, protocol, "step", single_rate=1e-3, tuning_seeds=options.tuning_seeds, **size)


def problem_of(options: argparse.Namespace) -> tuple[Problem, int, str]:
  """The problem, its epochs and its folder."""
  if not options.resnet:
    examples = (256, 128, 128) if options.slice else (10_000, 2_000, 10_000)
    return fashion_mnist(examples=examples), 13, options.schedule
  images, whole = {"fashion-mnist": (fashion_mnist, 60_000), "cifar-10": (cifar_10, 50_000)}[options.resnet]
  examples = (64, 32, 16) if options.slice else (whole - 5_000, 5_000, 10_000)
  return images(examples=examples, model=ResNet()), 30, f"resnet-{options.resnet}-{options.schedule}"


if __name__ == "__main__":
  share_cores()
  main()
