"""Makes `benchmarks/results/REPORT.md` and its pictures of whatever results there are.

    python benchmarks/papers/report.py

Every number is computed from the raw results, every verdict follows from intervals; what has not run is listed.
"""

import argparse
import itertools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from laboratory import RESULTS
from matplotlib.figure import Figure
from pages import Pages, percent, table

from optax_ext.compare import paired
from optax_ext.compare.papers import CALIFORNIA
from optax_ext.compare.run import Result
from optax_ext.compare.statistics import Difference, adjust

# Improvement of the RMSE over Adam in %, from CaAdam's Table III, in the order of these columns.
COLUMNS = ("adamw", "adamax", "nadam", "additive, as published", "multiplicative, as published", "depth, as published")
PUBLISHED = {
  "64-32": (0.06, -1.24, 0.31, 0.61, 2.07, 0.41),
  "128-64-32": (0.18, -1.68, -0.17, 1.77, 2.87, 1.26),
  "128-128-64": (0.06, -1.82, 0.08, 1.14, 2.24, 0.99),
  "256-128-64-32": (0.27, -1.52, -0.30, 1.15, 1.43, 0.93),
  "128-128-128-128-128": (0.25, -2.06, 0.09, 1.07, 1.44, 1.08),
  "1024-256-64-16": (0.00, -2.23, 0.22, 0.49, -0.26, 0.50),
}
RULES = ("additive", "multiplicative", "depth")
LOGITS = ("plain", "batch_norm", "l2")

INTRODUCTION = """# The papers' experiments, run again

Three questions for each paper: what does it claim; what comes out when its own comparison is repeated, all optimizers
at one learning rate; and what is left when every optimizer, Adam too, has its own best learning rate, found on
validation data with as many trials, and is judged on test data with fresh seeds.

Differences are between runs of the same seed (initialisation, order of the data, dropout), with 95% bootstrap intervals
over seeds. "better" and "worse" need p < 0.05 after Holm's adjustment (from 5 seeds on) and an interval without 0;
"equal" an interval inside ±0.5% of the baseline; all else is "undecided". Networks and data are small: see the limits
at the end. Raw results, one line a run, lie in `papers/`; `python benchmarks/papers/report.py` makes this page of them.
"""

CAADAM = """## CaAdam

Claim: connection-aware step sizes beat Adam on California Housing, RMSE 1.4 to 2.9% lower with the multiplicative rule
on five of six networks (all at the learning rate 1e-3). Its code multiplies all kernels alike by 1.95 (additive) or 5
(multiplicative), which is not what its equations say: for these two the comparison is of learning rates. By depth it
counts variables instead of layers; its factors differ from layer to layer.
"""

EXADAM = """## EXAdam

Claims: on Shakespeare, all at 1e-4, a training loss of 0.611 where Adam has 1.322; its best validation loss is 1.497,
but its last, 1.794, is worse than Adam's, 1.567, which still falls. On CIFAR-10, all at 1e-4, 92.1% where Adam has
89.7%. At Adam's learning rate its steps are 7 to 12 times Adam's.
"""

ADAMNX = """## AdamNX

Claim: its second-moment decay beats Adam's, Adafactor's and AdaX's inside the same optimizer (CIFAR-100, top-1 error:
39.44 Adam, 41.22 Adafactor, 35.22 AdaX, 34.27 AdamNX; one seed, one learning rate). AdamNX's decay is AdaX's in other
symbols; at the defaults they are nearly the same rule.
"""

ND_ADAM = """## ND-Adam

Claims: it closes the gap in generalisation between Adam and SGD (CIFAR-10, WRN-28-10: 3.70% test error, SGD 3.80%),
since it controls the angle of each step; batch-normalised logits help further.
"""

LIMITS = """## Limits

- Everything ran on a CPU: small networks, short trainings. EfficientNet and object detection are not among the
  experiments; ResNet-20 and the 14.3M-parameter language model (`exadam.py --full`) are, for a GPU.
- In the tuned comparisons on images and text one seed chooses the learning rates, out of half-decade steps, which
  is coarse: an optimizer may be unlucky in its rate.
- Of runs with more than 20 evaluations raw results hold about eight, the best and the last among them.
- CaAdam's paper does not say how features and target are standardised: here by mean and deviation of the training
  part. Its initialisation is one for all runs, unknown to us: ours is another one.
"""


def main(arguments: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the raw results")
  parser.add_argument("--report", type=pathlib.Path, default=RESULTS.parent / "REPORT.md", help="the page to write")
  options = parser.parse_args(arguments)
  pages = Pages(options.results, options.report.parent)
  sections = [caadam(pages), exadam(pages), adamnx(pages), nd_adam(pages)]
  missing = [f"- {line}" for line in pages.missing] or ["- Nothing: all experiments ran."]
  lines = [INTRODUCTION, *in_short(pages), *itertools.chain(*sections), "## Not run yet", "", *missing, "", LIMITS]
  options.report.write_text("\n".join(lines), "utf-8")


def in_short(pages: Pages) -> list[str]:
  """One table of all papers: what is claimed, what one learning rate shows, what tuning leaves."""
  rows = [["optimizer and problem", "claim", "at one learning rate", "each tuned"]]
  for network in CALIFORNIA:
    name = f"caadam/{network}-published"
    complete = len(pages.lines(name)) == 13 * seeds_of(network)
    values = {arm: [rmse(result) for result in of] for arm, of in pages.reporting(name).items()} if complete else {}
    for rule, claim in zip(RULES, PUBLISHED[network][3:], strict=True):
      once = "not run yet"
      if values:
        than = lambda other, rule=rule, values=values: improvement(
          paired(values[f"{rule}, as published"], values[other]), mean(values["adam"])
        )
        once = f"{than('adam')}; against Adam at the same scale {than(f'adam at the scale of {rule}')}"
      case = f"California {network}, RMSE"
      rows.append([f"CaAdam {rule} as published, {case}", f"{claim:+.2f}%", once, "–"])
      if network not in CALIFORNIA[:2]:
        continue
      fair = [pages.verdict(f"caadam/{network}-fair", f"caadam_{rule}", "adam", of) for of in ("at one rate", "tuned")]
      rows.append([f"CaAdam {rule} as written, {case}", "–", *fair])
  california = [
    (f"{label}, California {network}, RMSE", "–", f"caadam/{network}-fair", optimizer, baseline)
    for network in CALIFORNIA[:2]
    for label, optimizer, baseline in (
      ("EXAdam", "exadam", "adam"),
      ("EXAdam without log step", "exadam_nolog", "adam"),
      ("AdamNX, against AdamW", "adamnx", "adamw"),
    )
  ]
  others = [
    *california,
    (
      "EXAdam, text, test loss (one rate: 1e-4)",
      "best 0.07 lower, last 0.23 higher than Adam's last, at 1e-4",
      "exadam/small",
      "exadam",
      "adam",
    ),
    (
      "EXAdam, images, test error (one rate: 1e-3)",
      "2.4 points lower than Adam, at 1e-4",
      "images/cosine",
      "exadam",
      "adam",
    ),
    ("AdamNX's decay, images, test error", "5.2 points lower than Adam's", "adamnx/images", "adamnx", "adam"),
    ("AdamNX's decay, text, test loss", "–", "adamnx/text", "adamnx", "adam"),
    ("ND-Adam, images, test error", "0.1 points lower than SGD", "nd_adam/plain", "nd_adam", "sgd_l2"),
    ("ND-Adam, images, test error", "lower than Adam (no number)", "nd_adam/plain", "nd_adam", "adam"),
  ]
  for what, claim, name, optimizer, baseline in others:
    once = "–" if optimizer == "nd_adam" else pages.verdict(name, optimizer, baseline, "at one rate")
    rows.append([what, claim, once, pages.verdict(name, optimizer, baseline, "tuned")])
  explained = (
    "How far the optimizer's mean is below its baseline's (Adam's where none is named), in % of it: + is better. "
    "CaAdam as published has the factors that its code miscounted, in the additive and multiplicative rules the same "
    "for all kernels; as written it follows its equations, on the traced network."
  )
  return ["## In short", "", explained, "", *table(rows)]


def caadam(pages: Pages) -> list[str]:
  lines, gaps = [CAADAM], []
  for network, (suffix, option, title) in itertools.product(
    CALIFORNIA,
    [("published", "", "one initialisation, as published"), ("own-init", " --own-init", "own initialisations")],
  ):
    name, seeds = f"caadam/{network}-{suffix}", seeds_of(network)
    if not pages.finished(name, f"caadam.py published --network {network}{option}", 13 * seeds):
      continue
    runs = pages.reporting(name)
    values = {arm: [rmse(result) for result in of] for arm, of in runs.items()}
    lines += [f"### {network}, {title}", "", f"{seeds} runs each; RMSE of the standardised target.", ""]
    lines += caadam_table(runs, values, dict(zip(COLUMNS, PUBLISHED[network], strict=True)))
    pairs = [(values[f"{rule}, as published"], values[f"adam at the scale of {rule}"]) for rule in RULES]
    for rule, gap in zip(RULES, adjust([paired(*pair) for pair in pairs]), strict=True):
      gaps.append((f"{network}, {title.split(',')[0]}: {rule}", gap, mean(values["adam"])))
      against = f"{improvement(gap, mean(values['adam']))}, {gap.verdict}"
      lines.append(f"- {rule}, as published, against Adam at the same scale: {against}.")
    lines.append("")
  if gaps:
    lines += [
      "What CaAdam as published adds to Adam with its learning rate multiplied alike (more is better for CaAdam):",
      "",
    ]
    lines += pages.picture("caadam/scale.png", gap_picture(gaps), "CaAdam as published against Adam at the same scale")
  rules = [f"caadam_{rule}" for rule in RULES]
  for network in CALIFORNIA[:2]:
    command = f"caadam.py fair --network {network}"
    lines += pages.tuned(f"caadam/{network}-fair", f"{network}, every optimizer tuned", command, rules)
  return lines


def seeds_of(network: str) -> int:
  """In the published comparison."""
  return 10 if network == CALIFORNIA[-1] else 30


def rmse(result: Result) -> float:
  return math.nan if result.diverged else result.curves["test/rmse"][result.best]


def mean(values: Sequence[float]) -> float:
  return float(np.mean(values))


def caadam_table(runs: dict[str, list[Result]], values: dict[str, list[float]], claimed: dict[str, float]) -> list[str]:
  """Each optimizer against Adam, as in the paper's Tables I and III, with the paper's own test."""
  rows = [["optimizer", "RMSE", "SD", "epochs", "better than Adam by", "Student's p", "in the paper"]]
  adam, epoch = values["adam"], runs["adam"][0].steps[0]
  for arm, of in values.items():
    row = [arm, f"{mean(of):.4f}", f"{np.std(of, ddof=1):.4f}", f"{mean([r.steps[-1] for r in runs[arm]]) / epoch:.0f}"]
    test: Any = scipy.stats.ttest_ind(of, adam)
    against = [improvement(paired(of, adam), mean(adam)), f"{test.pvalue:.1g}"] if arm != "adam" else ["–", "–"]
    rows.append([*row, *against, f"{claimed[arm]:+.2f}%" if arm in claimed else "–"])
  return table(rows)


def improvement(difference: Difference, reference: float) -> str:
  return percent(difference.mean, difference.low, difference.high, reference)


def gap_picture(gaps: Sequence[tuple[str, Any, float]]) -> Figure:
  figure = Figure(figsize=(8, 1 + 0.28 * len(gaps)), layout="constrained")
  panel = figure.subplots()
  for place, (_, gap, reference) in enumerate(gaps):
    middle, low, high = (0 - 100 * value / reference for value in (gap.mean, gap.low, gap.high))
    panel.plot([low, high], [place, place], color="C0")
    panel.plot([middle], [place], "o", color="C0")
  panel.axvline(0, color="0.5", linewidth=1)
  panel.set(xlabel="% of Adam's RMSE", yticks=range(len(gaps)), yticklabels=[name for name, _, _ in gaps])
  panel.invert_yaxis()
  panel.spines[["top", "right"]].set_visible(False)
  return figure


def exadam(pages: Pages) -> list[str]:
  lines = [EXADAM]
  ours = ["exadam", "exadam_nolog"]
  lines += pages.tuned("exadam/small", "Character GPT of 0.8M parameters on Shakespeare", "exadam.py", ours)
  with_caadam = [*ours, *(f"caadam_{rule}" for rule in RULES)]
  for schedule in ("cosine", "constant"):
    command = f"images.py --schedule {schedule}"
    lines += pages.tuned(f"images/{schedule}", f"Images (CaAdam too), {schedule} schedule", command, with_caadam)
  for images in ("fashion-mnist", "cifar-10"):
    name, command = f"images/resnet-{images}-cosine", f"images.py --resnet {images}"
    lines += pages.tuned(name, f"ResNet-20 on {images}", command, with_caadam)
  return lines


def adamnx(pages: Pages) -> list[str]:
  lines = [ADAMNX]
  ours = ["adafactor", "adax", "adamnx", "adamnx, matched", "adax as adamnx, matched"]
  lines += pages.tuned("adamnx/images", "Images", "adamnx.py --problem images", ours)
  lines += pages.tuned("adamnx/text", "Text", "adamnx.py --problem text", ours)
  return lines


def nd_adam(pages: Pages) -> list[str]:
  lines = [ND_ADAM]
  for logits in LOGITS:
    title = f"Fashion-MNIST, logits: {logits.replace('_', ' ')}"
    lines += pages.tuned(f"nd_adam/{logits}", title, f"nd_adam.py tuned --logits {logits}", ["nd_adam"])
  if (pages.folder / "nd_adam/plain/summary.md").exists():
    lines += equal_training_loss(pages.reporting("nd_adam/plain"))
  if pages.finished("nd_adam/initial-scale", "nd_adam.py claims", 27):
    lines += initial_scale(pages.reporting("nd_adam/initial-scale"))
  angles = {
    path.stem: json.loads(path.read_text("utf-8")) for path in sorted((pages.folder / "nd_adam/angles").glob("*.json"))
  }
  return lines + (angle_lines(pages, angles) if angles else [])


def equal_training_loss(runs: dict[str, list[Result]]) -> list[str]:
  """Test error where the training loss first falls to what every optimizer reaches."""
  reached = max(result.curves["train/loss"][-1] for of in runs.values() for result in of if not result.diverged)
  rows = [["optimizer", "test error", "steps"]]
  for name, of in runs.items():
    at = [next(i for i, loss in enumerate(r.curves["train/loss"]) if loss <= reached) for r in of if not r.diverged]
    alive = [result for result in of if not result.diverged]
    errors = [100 * result.curves["test/error"][i] for result, i in zip(alive, at, strict=True)]
    steps = [result.steps[i] for result, i in zip(alive, at, strict=True)]
    rows.append([name, f"{np.mean(errors):.2f}% (SD {np.std(errors, ddof=1):.2f})", f"{np.mean(steps):.0f}"])
  return [
    "### Test error at equal training loss",
    "",
    f"Where the training loss first is at most {reached:.3f}.",
    "",
    *table(rows),
  ]


def initial_scale(runs: dict[str, list[Result]]) -> list[str]:
  """Test error by factor of the initial kernels."""
  rows = [["optimizer", "kernels × 0.1", "× 1", "× 10"]]
  for name in dict.fromkeys(arm.partition(",")[0] for arm in runs):
    errors = [
      [100 * r.curves["test/error"][-1] for r in runs[f"{name}, kernels × {scale}"]] for scale in (0.1, 1.0, 10.0)
    ]
    rows.append([name, *(f"{np.mean(of):.2f}% ({min(of):.2f} to {max(of):.2f})" for of in errors)])
  words = "Test error (mean, least to most of 3 seeds) at the tuned rate. The claim: ND-Adam's does not change."
  return ["### Initial kernels multiplied", "", words, "", *table(rows)]


def angle_lines(pages: Pages, angles: dict[str, dict[str, dict[str, list[float]]]]) -> list[str]:
  """How the angle of a step and the length of vectors change, beside the schedule."""
  rows = [["optimizer", "length, end over start", "angle over schedule, second to last tenth over second"]]
  figure = Figure(figsize=(11, 4), layout="constrained")
  panels = figure.subplots(1, 2)
  for color, (name, layers) in zip(itertools.cycle([f"C{i}" for i in range(10)]), angles.items(), strict=False):
    angle, length = (np.mean([of[what] for of in layers.values()], axis=0) for what in ("angle", "length"))
    count = np.arange(len(angle))
    relative = angle / (0.5 * (1 + np.cos(math.pi * count / len(angle))))
    tenth = max(len(angle) // 10, 1)
    change = relative[-2 * tenth : -tenth].mean() / relative[tenth : 2 * tenth].mean()
    rows.append([name, f"{length[-1] / length[0]:.2f}", f"× {change:.2f}"])
    panels[0].plot(count + 1, angle, color=color, label=name, linewidth=1)
    panels[1].plot(count + 1, length, color=color, label=name, linewidth=1)
  for panel, title in zip(panels, ["angle of a step (radians)", "length of the vectors"], strict=True):
    panel.set(title=title, xlabel="step", yscale="log")
    panel.spines[["top", "right"]].set_visible(False)
  panels[1].legend(frameon=False)
  words = (
    "Means over the units of all four convolutions, seed 0, tuned rates. The claim: Adam's angle shrinks as its vectors"
  )
  words += " grow, ND-Adam's follows the schedule (× 1)."
  return ["### Angles", "", words, "", *table(rows), *pages.picture("nd_adam/angles.png", figure, "angles and lengths")]


if __name__ == "__main__":
  main()
