"""What the examples share: the data, the optimizers, the options, and the report at the end."""

import argparse
import dataclasses
import math
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optax
import rich.box
import rich.console
import rich.progress
import rich.table
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from optax_ext import Additive, ByDepth, Multiplicative, adamnx, caadam, exadam, nd_adam

BATCH_SIZE = 64


def vector_axes(path: str, leaf: Any) -> tuple[int, ...] | None:
  """ND-Adam's vectors: the input weights of each unit of a convolution, whose kernel is (height, width, in, out).

  Each convolution here is followed by a batch norm, so that the length of these vectors has no effect. The output layer
  is not, so that the length of its vectors matters: its kernel is a scalar leaf, as all biases and norms are.
  """
  return (0, 1, 2) if path.endswith("conv/kernel") else None


# From a base learning rate to an optimizer. EXAdam's steps are 7 to 28 times as long as Adam's at the same rate, so it
# gets a tenth. ND-Adam uses the rate for its scalars and 50 times the rate for its vectors. AdamW decays as AdamNX.
OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
  "adam": optax.adam,
  "adamw": lambda rate: optax.adamw(rate, weight_decay=0.01),
  "exadam": lambda rate: exadam(rate / 10),
  "exadam_nolog": lambda rate: exadam(rate / 10, log_step=False),
  "adamnx": adamnx,
  "caadam_additive": lambda rate: caadam(rate, rule=Additive()),
  "caadam_multiplicative": lambda rate: caadam(rate, rule=Multiplicative()),
  "caadam_depth": lambda rate: caadam(rate, rule=ByDepth()),
  "nd_adam": lambda rate: nd_adam(rate, axes=vector_axes),
}


@dataclasses.dataclass(frozen=True)
class Images:
  """Handwritten digits and what they show."""

  pixels: np.ndarray  # float32 in [0, 1], (number, 8, 8, 1)
  labels: np.ndarray  # int32, (number,)

  def batches(self, seed: int, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Full batches of the images in random order, which depends on nothing else: it is the same for all optimizers."""
    order = np.random.default_rng([seed, epoch]).permutation(len(self.labels))
    for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):  # a smaller last one would compile a second step
      chosen = order[start : start + BATCH_SIZE]
      yield self.pixels[chosen], self.labels[chosen]


def load() -> tuple[Images, Images, Images]:
  """Handwritten digits, from files inside scikit-learn: 1,197 for training, 300 for validation, 300 for testing."""
  rows, labels = load_digits(return_X_y=True)
  pixels = np.asarray(rows / 16, np.float32).reshape(-1, 8, 8, 1)
  labels = np.asarray(labels, np.int32)
  parts = np.split(np.random.default_rng(0).permutation(len(labels)), [1197, 1497])
  training, validation, test = (Images(pixels[part], labels[part]) for part in parts)
  return training, validation, test


@dataclasses.dataclass
class History:
  """What is measured while one optimizer trains."""

  train_losses: list[float] = dataclasses.field(default_factory=list)  # one per epoch
  validation_losses: list[float] = dataclasses.field(default_factory=list)  # one per epoch
  step_seconds: list[float] = dataclasses.field(default_factory=list)  # one per step; the first includes compilation
  best_loss: float = math.inf  # the lowest validation loss
  best_epoch: int = 0
  test_accuracy: float = math.nan  # after the best epoch

  def end_epoch(self, train_losses: list[float], validation_loss: float) -> bool:
    """Notes the losses of an epoch. Says whether it is the best one so far."""
    self.train_losses.append(statistics.mean(train_losses))
    self.validation_losses.append(validation_loss)
    is_best = validation_loss < self.best_loss
    if is_best:
      self.best_loss, self.best_epoch = validation_loss, len(self.validation_losses)
    return is_best

  def step_time(self) -> float:
    """Seconds of a typical step. A median, since other programs on the machine make single steps slow."""
    return statistics.median(self.step_seconds[1:])


def parse_options(description: str | None) -> argparse.Namespace:
  """The options of the command line, checked before any work. A bad value ends the program with one sentence."""
  known = ", ".join(OPTIMIZERS)
  parser = argparse.ArgumentParser(description=description)
  parser.add_argument("--seed", type=int, default=0, help="of the initial weights and of the order of the images (0)")
  parser.add_argument("--epochs", type=int, default=25, help="passes through the training images (25)")
  parser.add_argument(
    "--optimizers", nargs="+", default=list(OPTIMIZERS), metavar="NAME", help=f"some of these (all): {known}"
  )
  parser.add_argument(
    "--learning-rate",
    type=float,
    default=1e-3,
    metavar="RATE",
    help="base rate (0.001), the learning rate of every optimizer but two: exadam and exadam_nolog get a tenth of it, "
    "since their steps are about ten times as long; nd_adam moves its weight vectors at 50 times the base rate",
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"), help="folder for the picture (out)")
  options = parser.parse_args()

  names = [name for names in options.optimizers for name in names.split(",") if name]
  options.optimizers = list(dict.fromkeys(names))  # each once
  problem = find_problem(options)
  if problem:
    parser.exit(2, problem + "\n")
  return options


def find_problem(options: argparse.Namespace) -> str | None:
  """What is wrong with the options, as a sentence."""
  known = ", ".join(OPTIMIZERS)
  unknown = [name for name in options.optimizers if name not in OPTIMIZERS]
  if unknown:
    return f"Unknown optimizer {', '.join(map(repr, unknown))}; the known ones are {known}."
  if not options.optimizers:
    return f"--optimizers must name at least one of {known}."
  if options.epochs < 1:
    return f"--epochs must be at least 1, but was {options.epochs}."
  if not 0 <= options.learning_rate < math.inf:
    return f"--learning-rate must be a finite number of at least 0, but was {options.learning_rate}."
  if not 0 <= options.seed < 2**32:
    return f"--seed must be at least 0 and below 2**32, but was {options.seed}."
  try:
    options.out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=options.out).close()
  except OSError as error:
    return f"--out names the folder {str(options.out)!r}, which cannot be written to: {error.strerror}."
  return None


class ProgressBars(rich.progress.Progress):
  """One live line for each optimizer. Where the output is not a terminal, they are printed once, at the end."""

  def __init__(self, options: argparse.Namespace):
    super().__init__(
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.TextColumn("epoch {task.completed}/{task.total}"),
      rich.progress.TextColumn("{task.fields[loss]}"),
    )
    self.bars = {name: self.add_task(name, total=options.epochs, loss="") for name in options.optimizers}

  def show(self, name: str, history: History) -> None:
    """Moves an optimizer's line on by one epoch."""
    self.update(self.bars[name], advance=1, loss=f"validation loss {history.validation_losses[-1]:.4g}")


def print_table(histories: dict[str, History]) -> None:
  """One line for each optimizer."""
  adam = histories.get("adam")
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  table.add_column("optimizer", no_wrap=True)
  time = "time per step\n" + ("(adam = 1)" if adam else "(ms)")
  for column in "test\naccuracy", "best\nvalidation loss", "in\nepoch", time:
    table.add_column(column, justify="right", no_wrap=True)
  for name, history in histories.items():
    table.add_row(
      name,
      f"{history.test_accuracy:.2%}",
      f"{history.best_loss:.4g}",
      str(history.best_epoch),
      f"{history.step_time() / (adam.step_time() if adam else 1e-3):.2f}",
    )
  rich.console.Console().print(table)
  print("Test accuracy is that after the epoch of the best validation loss; 0.33% is one image of 300.")
  print("This is one seed and one untuned base rate: no ranking. Try others with --seed and --learning-rate.")
  if adam:
    print(f"A step of adam took {1000 * adam.step_time():.2f} ms.")


COLORS = ["black", "0.6", "tab:blue", "tab:cyan", "tab:green", "gold", "tab:orange", "tab:red", "tab:purple"]
COLOR_OF = dict(zip(OPTIMIZERS, COLORS, strict=True))


def save_picture(histories: dict[str, History], options: argparse.Namespace, file_name: str) -> pathlib.Path:
  """The loss curves of all optimizers, on logarithmic axes. Needs no display."""
  figure = Figure(figsize=(12, 5), layout="constrained")
  panels = figure.subplots(1, 2, sharex=True)
  for name, history in histories.items():
    style = {"color": COLOR_OF[name], "linewidth": 2.5 if name == "adam" else 1.5}
    style |= {"marker": "o" if options.epochs == 1 else None}  # one point makes no line
    for panel, losses in zip(panels, [history.train_losses, history.validation_losses], strict=True):
      panel.plot(range(1, options.epochs + 1), losses, **style)
  for panel, title in zip(panels, ["Training loss", "Validation loss"], strict=True):
    drawable = any(np.isfinite(line.get_ydata()).any() for line in panel.get_lines())  # false where all runs diverged
    panel.set(title=title, xlabel="epoch", yscale="log" if drawable else "linear")
    panel.grid(alpha=0.3, which="both", linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)
  figure.legend(panels[0].get_lines(), list(histories), loc="outside right center", frameon=False)
  path = options.out / file_name
  figure.savefig(path, dpi=150)
  return path
