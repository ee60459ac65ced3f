"""What every optimizer's step costs in memory traffic, on TPUs and GPUs that this machine does not have.

    python benchmarks/speed/table.py
    python benchmarks/speed/table.py --low-precision

The first compiles each step ahead of time for every target that it has a limit for, and writes
`benchmarks/results/speed/traffic.md` and `traffic.png`, in five minutes or more on two cores; `--targets v5e H100` and
`--cases nd_adam` compile a part and write nothing. The second compiles steps on bfloat16 weights for all of
`--targets` but v4, limit or none, and writes `traffic_low_precision.md`.
"""

import argparse
import pathlib

from ahead_of_time import Cost, cost_of
from cases import CASES, LOW_PRECISION, Case
from matplotlib.figure import Figure
from report import RESULTS, heading, markdown_table, write
from sharded import SHARDED, exchanged
from targets import TARGETS, without_accelerators

Costs = dict[str, dict[str, Cost]]  # by case, then by target

EXPLANATION = """\
Bytes of device memory that one donated step (update and apply) reads and writes for each parameter; 4 weights of
4096 × 4096, float32 parameters and gradients. Read off the compiled programs: for TPUs XLA's own "bytes accessed", for
the H100 and for steps with a kernel the operands and results of all scheduled instructions (a kernel is taken to read
what it is given once, as these do). "Least" is every argument once and every result once, what a single pass moves;
"state" is what the optimizer keeps. Of the donated memory at most {wasted} bytes are not used again.
"""
SHARDED_EXPLANATION = """\
The same steps on 2 × 2 chips of TPU v5e: what the chips exchange, and the part of the optimizer's state on each.
"""


LOW_PRECISION_EXPLANATION = """\
As in `traffic.md`, of Adam on 2 weights of 4096 × 4096 in bfloat16 with bfloat16 gradients, but for the first line, of
Adam in float32; by `update_and_apply`. Kept are 2 bytes of weights and the state. Kernels for TPUs want a scale per
row: blocks of 128 are stepped by XLA there. Temporaries are a part of the weights' bytes, on the worst target.

The goal was 16.1 bytes for split weights with bfloat16 or 8-bit moments, and 14.1 for 8-bit moments beside bfloat16
weights, on all of these targets. Where 27 bytes stand in place of 16, XLA writes the new weights in float32, between
two passes: it takes one only where a step has few operations for the chip's bandwidth. On tpu7x it lays out a bfloat16
result that is computed beside an 8-bit one in tiles of 16 × 128, and copies it back.
"""


def measure(cases: dict[str, Case], targets: list[str], only_limited: bool = True, leaves: int = 4) -> Costs:
  """The costs of the cases, for the targets that they have a limit for or for all."""
  costs: Costs = {}
  for name, case in cases.items():
    for target in targets:
      if case.limit(target) or not only_limited:
        cost = costs.setdefault(name, {})[target] = cost_of(case, target, leaves)
        print(f"{name}, {target}: {cost.moved:.2f}", flush=True)
  return costs


def traffic_table(costs: Costs, targets: list[str]) -> str:
  """One line for each case, one column for each target."""
  rows = []
  for name, of_targets in costs.items():
    any_cost = next(iter(of_targets.values()))
    moved = [f"{of_targets[target].moved:.2f}" if target in of_targets else "–" for target in targets]
    temporaries = max(cost.temporaries for cost in of_targets.values())
    rows.append([name, *moved, f"{any_cost.least:.2f}", f"{any_cost.state:.2f}", f"{temporaries:.2%}"])
  return markdown_table(["step", *targets, "least", "state", "temporaries"], rows)


def sharded_table() -> str:
  """One line for each step on a mesh."""
  rows = []
  for name, sharded in SHARDED.items():
    collectives, held = exchanged(sharded)
    print(f"{name}: {collectives}", flush=True)
    counts = ", ".join(f"{count} {kind}" for kind, count in collectives.items()) or "nothing"
    rows.append([name, str(sharded.leaves), counts, f"{held:.3f}"])
  return markdown_table(["step", "leaves", "collectives", "state on a chip"], rows)


def draw(costs: Costs, path: pathlib.Path) -> None:
  """A bar for each case on a TPU and on a GPU, and a mark at what a single pass moves."""
  names = list(costs)[::-1]
  figure = Figure(figsize=(8, 0.32 * len(names) + 1.2), layout="constrained")
  axes = figure.subplots()
  for offset, target, color in (0.2, "v5e", "C0"), (-0.2, "H100", "C2"):
    shown = [(i, costs[name][target].moved) for i, name in enumerate(names) if target in costs[name]]
    axes.barh([i + offset for i, _ in shown], [moved for _, moved in shown], 0.38, color=color, label=target)
  least = [next(iter(costs[name].values())).least for name in names]
  axes.plot(least, range(len(names)), "|", color="black", markersize=13, label="a single pass")
  axes.axvline(28, color="0.7", linewidth=0.8, zorder=0)
  axes.set_yticks(range(len(names)), names)
  axes.set_xlabel("bytes of device memory per parameter; the line is at 28")
  axes.margins(y=0.01)
  axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
  figure.savefig(path, dpi=150)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
  parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
  parser.add_argument("--low-precision", action="store_true", help="steps on bfloat16 weights")
  options = parser.parse_args()
  without_accelerators()
  if options.low_precision:
    targets = [target for target in options.targets if target != "v4"]  # whose 16 MiB do not hold the kernel's blocks
    costs = measure(LOW_PRECISION, targets, only_limited=False, leaves=2)
    title = heading("Memory traffic of one step in low precision", "compiled ahead of time")
    write("traffic_low_precision.md", title, LOW_PRECISION_EXPLANATION.strip(), traffic_table(costs, targets))
    return
  costs = measure({name: CASES[name] for name in options.cases}, options.targets)
  if (options.targets, options.cases) != (list(TARGETS), list(CASES)):
    print(traffic_table(costs, options.targets))
    return
  title = heading("Memory traffic of one step", "compiled ahead of time")
  wasted = max(cost.wasted for of_case in costs.values() for cost in of_case.values())
  sections = [
    title,
    EXPLANATION.format(wasted=wasted),
    traffic_table(costs, options.targets),
    SHARDED_EXPLANATION,
    sharded_table(),
  ]
  write("traffic.md", *(section.strip() for section in sections))
  draw(costs, RESULTS / "traffic.png")


if __name__ == "__main__":
  main()
