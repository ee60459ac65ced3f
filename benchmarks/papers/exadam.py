"""EXAdam's language model, Table 3: a character GPT on Shakespeare that overfits.

    python benchmarks/papers/exadam.py published
    python benchmarks/papers/exadam.py tuned
    python benchmarks/papers/exadam.py rivals
    python benchmarks/papers/exadam.py rivals --full

0.8M parameters, contexts of 64 characters, batches of 16, 2,000 steps on the text's first tenth; losses on its last.
published: the table's optimizers, all at 1e-4, as in the paper, 3 seeds. tuned: EXAdam with and without its log step,
Adam and AdamW, besides at 5 rates with 1 seed each, then with 3 fresh seeds at each one's best. rivals: the same with
all of the table. Each part goes on with the runs of those before. --full is the paper's size (14.3M parameters,
contexts of 256, batches of 64, 5,000 steps on 9/10 of the text), for a GPU.
"""

import laboratory
import optax
from laboratory import report, share_cores, tuned

from optax_ext.compare import Optimizer, Problem, Protocol
from optax_ext.compare.experiment import resolve
from optax_ext.compare.problems.papers import GPT, shakespeare

RATE = 1e-4  # of the paper's comparison
SMALLEST = GPT(block=16, width=16, heads=2, layers=1)
LARGEST = GPT(block=256, width=384, heads=8, layers=8)


OURS = ("adam", "adamw", "exadam", "exadam_nolog")
RIVALS = (
  "sgd",
  Optimizer("adafactor", optax.adafactor, 10**-1.5),  # times the parameters' root mean square
  Optimizer("signum", optax.signum, 10**-3.5),
  Optimizer("ademamix", optax.contrib.ademamix, 1e-3),
)


def problem_and_protocol(small: bool, full: bool) -> tuple[Problem, Protocol]:
  if small:
    return shakespeare(SMALLEST, part=0.002, held_out=32), Protocol(20, 10)
  if full:
    return shakespeare(LARGEST, batch_size=64, part=0.9), Protocol(5000, 250)
  return shakespeare(), Protocol(2000, 100)


def main(arguments: list[str] | None = None) -> None:
  parser = laboratory.parser(__doc__)
  parser.add_argument("part", choices=["published", "tuned", "rivals"])
  parser.add_argument("--full", action="store_true", help="the paper's size")
  options = laboratory.parse(parser, arguments)
  problem, protocol = problem_and_protocol(options.slice, options.full)
  arms = OURS if options.part == "tuned" else (*OURS, *RIVALS)
  optimizers = resolve(arms[::2] if options.slice else arms, problem, add_baselines=True)
  seeds = 2 if options.slice else 3
  folder = options.out / "exadam" / ("full" if options.full else "small")
  if options.part == "published":
    report(folder, problem, protocol, optimizers, seeds, dict.fromkeys(optimizers, RATE))
  else:
    size = {"points": 1 if options.slice else 5, "tuning_seeds": 1, "seeds": seeds}
    tuned(folder, problem, list(optimizers.values()), protocol, "map", single_rate=RATE, **size)


if __name__ == "__main__":
  share_cores()
  main()
