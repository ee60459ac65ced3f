"""`compare`: tune every optimizer alike, then report all of them on fresh seeds."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optax

from optax_ext.compare import grid
from optax_ext.compare.arguments import baseline_names, check_options, rates_of, resolve, seeds_of
from optax_ext.compare.design import Design
from optax_ext.compare.grid import Range
from optax_ext.compare.laboratory import Laboratory, OptimizerError
from optax_ext.compare.optimizers import Optimizer
from optax_ext.compare.problem import Problem
from optax_ext.compare.processes import check_process, part, share
from optax_ext.compare.progress import Progress
from optax_ext.compare.protocol import Protocol
from optax_ext.compare.report import save, summary
from optax_ext.compare.result import Arm, Outcome
from optax_ext.compare.statistics import ENOUGH, Difference, adjust, paired
from optax_ext.compare.tuning import Tuner

FIRST_REPORTING_SEED = 1000  # tuning seeds count from 0


@dataclasses.dataclass
class Comparison(Outcome):
  """The outcome of `compare`, which can be printed and saved.

  Its attributes are those of `Outcome`.
  """

  def summary(self) -> str:
    """The comparison in Markdown."""
    return summary(self)

  def save(self, folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Writes the table of all runs (CSV and JSON) and the summary.

    Where plotly is installed a page, `report.html`, is beside them; where matplotlib is, the pictures as PNG files.
    """
    return save(self, pathlib.Path(folder))


def compare(
  problem: Problem,
  optimizers: Sequence[str | Optimizer] | Mapping[str, Callable[..., optax.GradientTransformation]],
  protocol: Protocol,
  *,
  learning_rates: Sequence[float] | None = None,
  points: int = 7,
  ratio: float = grid.HALF_DECADE,
  seeds: int | Sequence[int] | None = None,
  tuning_seeds: int | Sequence[int] | None = None,
  quick: bool = False,
  track: str = "A",
  trials: int = 16,
  single_rate: float | None = None,
  margin: float = 0.005,
  add_baselines: bool = True,
  batching: str = "auto",
  devices: Sequence[Any] | None = None,
  out: str | pathlib.Path | None = None,
  process: tuple[int, int] | None = None,
  curve_points: int | None = None,
  progress: bool = True,
) -> Comparison:
  """Compares optimizers on a problem, each at its own best learning rate.

  Every optimizer tries the same number of trials on the tuning seeds; the trial with the best mean validation metric is
  trained again with fresh seeds, and the test metrics of these runs are compared, seed by seed. A seed fixes the
  initialisation, the order of the data and dropout for every optimizer and learning rate.

  Args:
    problem: What is trained.
    optimizers: Names (`python -m optax_ext.compare --help` lists them), `Optimizer`s, or a dict of constructors of the
      learning rate.
    protocol: How long.
    learning_rates: A grid for all; without it each optimizer has its own, around its centre.
    points: In a grid of one's own.
    ratio: Of neighbours in such a grid. A grid of which an edge is as good as its best is extended there, by at most 3
      points a side, each as far from the last as that from its neighbour; then it is refined once around its best, at
      the root of the ratio to each neighbour.
    seeds: Reporting seeds: how many (then from 1000), or which; by default 8.
    tuning_seeds: How many (then from 0), or which; by default 3.
    quick: The cheapest design that can decide: by default 5 reporting seeds, 2 tuning seeds and no comparison at one
      rate, and successive halving instead of whole runs for every rate: all train for an eighth of the steps, the
      better half of the rates for a quarter, half of those for a half, half of these to the end. It costs less than a
      quarter of the full design's steps. The grid is extended, but not refined, and an optimizer whose grid was
      extended has tried more.
    track: "A" tunes the learning rate; "B" draws `trials` quasi-random trials from each optimizer's whole space.
    trials: Of track B.
    single_rate: The rate of the comparison at one rate, other settings being the defaults; by default the centre of the
      first baseline, with `quick` none. 0 for none.
    margin: What counts as equal, relative to the baseline's mean.
    add_baselines: Whether to add the matched baselines of named optimizers where they are missing.
    batching: "map" (one run after the other on each device), "vmap" (many at once), "step" (as map, each step a program
      of its own: for convolutions on a CPU), or "auto", which reads off the problem's program which of them suits.
    devices: That share the runs; by default all local ones.
    out: A folder for the results, `report.html` among them; an interrupted comparison continues from what is in it.
      Refused are changed data, protocols and versions, and runs of a model, a metric or an optimizer that computes
      something else now.
    process: `(k, n)` does the runs of the k-th of n processes, from 1 on, which is every n-th optimizer, and keeps them
      in a folder of its own in `out`. Nothing is compared or reported yet: when all are done (those of other machines
      copied there), the same call without `process` gathers their runs and does the few that depend on all. Where jax
      is distributed, give `(jax.process_index() + 1, jax.process_count())`; each process uses its own devices.
    curve_points: How many evaluations of each run are kept for curves and files, at least, the best and the last among
      them; `None` for all. Steps to target are told from all evaluations alone.
    progress: Whether to say what is going on: a live line in a terminal, else lines, on the standard error stream.

  Returns:
    A `Comparison`.

  Raises:
    TypeError, ValueError: bad input, in one sentence, before any training.

  Example:
    >>> from optax_ext.compare.problems.bundled import digits
    >>> found = compare(digits(), ["adam", "exadam"], Protocol(steps=360, evaluate_every=18))  # doctest: +SKIP
    >>> print(found.summary())  # doctest: +SKIP
  """
  for name, value, kind in [("problem", problem, Problem), ("protocol", protocol, Protocol)]:
    if not isinstance(value, kind):
      raise TypeError(f"{name} must be an optax_ext.compare.{kind.__name__}, but was {value!r}.")
  given = rates_of(learning_rates)
  check_options(given, points, ratio, track, quick, trials, single_rate, margin, batching, curve_points)
  if process is not None:
    check_process(process, out)
  tuning = seeds_of((2 if quick else 3) if tuning_seeds is None else tuning_seeds, 0, "tuning_seeds")
  reporting = seeds_of((ENOUGH if quick else 8) if seeds is None else seeds, FIRST_REPORTING_SEED, "seeds")
  if both := set(tuning) & set(reporting):
    raise ValueError(f"Reporting seeds must be fresh, but {sorted(both)} are among the tuning seeds too.")
  all_arms = resolve(optimizers, problem, add_baselines)
  if single_rate is None:
    single_rate = 0 if quick else next(all_arms[b].centre for b in [*baseline_names(all_arms), *all_arms])
  single_rate = float(single_rate)

  folder = pathlib.Path(out) if out else None
  if folder and process is not None:
    all_arms, folder = share(process, all_arms), part(folder, process)

  ratio = float(ratio)
  rates = {name: given or grid.grid(o.centre, points, ratio) for name, o in all_arms.items()}
  if len(given) > 1:  # on average
    ratio = (given[-1] / given[0]) ** (1 / (len(given) - 1))
  design = Design(protocol, len(all_arms), max(map(len, rates.values())), trials, track, quick, tuning, reporting)
  with Progress(progress, len(all_arms), design.steps(single_rate)) as shown:
    for line in design.lines(single_rate):
      shown.say(line)
    laboratory = Laboratory(
      problem, protocol, all_arms, batching, devices, folder, curve_points, settings=track == "B", progress=shown
    )
    tune = lambda name: laboratory.on(name, tuning, "tuning", planned=design.trials_to_the_end)
    tuners = {name: Tuner(problem, protocol, tune(name), laboratory.race(name, tuning)) for name in all_arms}

    def tuned(name: str) -> None:
      if track == "B":
        centre = all_arms[name].centre
        space = {"learning_rate": Range(centre / 10**1.5, centre * 10**1.5), **all_arms[name].space}
        tuners[name].try_all(grid.quasi_random(space, trials))
      elif quick:
        tuners[name].halve(rates[name], ratio)
      else:
        tuners[name].on_grid(rates[name], ratio)

    going = _Going(all_arms, shown)
    going.each(tuned)
    if track == "A" and not quick:
      most = max(len(tuner.search.trials) for tuner in tuners.values())
      going.each(lambda name: tuners[name].top_up(most, ratio))
    arms = {name: Arm(all_arms[name], tuners[name].search) for name in going.names}
    going.each(lambda name: _report(laboratory, arms[name], reporting, single_rate))

  of_arms = (problem, protocol, {name: arms[name] for name in going.names}, reporting, tuning)
  comparison = Comparison(*of_arms, single_rate or None, margin, laboratory.batching, failed=going.failed)
  if process is not None:
    return comparison
  comparison.tuned = differences(comparison, single=False)
  comparison.at_one_rate = differences(comparison, single=True) if single_rate else {}
  if folder:
    comparison.save(folder)
  return comparison


class _Going:
  """The optimizers that have not failed: a failure ends one, and the others go on."""

  def __init__(self, optimizers: Iterable[str], progress: Progress):
    self.names, self.failed, self.progress = list(optimizers), dict[str, str](), progress

  def each(self, do: Callable[[str], None]) -> None:
    """Does something for each. Raises `ValueError` where all have failed."""
    for name in list(self.names):
      try:
        do(name)
      except OptimizerError as error:
        self.failed[name] = str(error)
        self.names.remove(name)
        self.progress.say(f"{error}; the others go on")
    if not self.names:
      raise ValueError(f"No optimizer could be run. {' '.join(f'{reason}.' for reason in self.failed.values())}")


def _report(laboratory: Laboratory, arm: Arm, seeds: Sequence[int], single_rate: float) -> None:
  """Runs an optimizer at its best trial, and at the one learning rate that all share unless that is 0."""
  report = laboratory.on(arm.optimizer.name, seeds, "reporting", with_test=True)
  best, single = arm.search.best, {"learning_rate": single_rate}
  if best is not None and single_rate and len(best) == 1 and best != single:  # both in the same programs
    arm.reported, arm.single = report([best, single])
    return
  if best is not None:
    arm.reported = report([best])[0]
  if single_rate:
    arm.single = report([single])[0]


def differences(comparison: Comparison, single: bool) -> dict[tuple[str, str], Difference]:
  """Each optimizer against its baselines where both have runs, with p-values adjusted for all of them."""
  ran = [name for name, arm in comparison.arms.items() if single or arm.search.best is not None]
  pairs = [(name, baseline) for name in ran for baseline in comparison.baselines(name) if baseline in ran]
  badness = lambda name: [comparison.problem.badness(v) for v in comparison.values(name, single=single)]
  differences = [paired(badness(name), badness(baseline), comparison.margin) for name, baseline in pairs]
  return dict(zip(pairs, adjust(differences), strict=True))
