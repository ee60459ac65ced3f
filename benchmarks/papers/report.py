"""Makes `benchmarks/results/REPORT.md` and its pictures of whatever results there are.

    python benchmarks/papers/report.py

Every number is computed from the raw results, every verdict follows from intervals; what has not run is listed.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import claims
import numpy as np
import scipy.stats
from laboratory import RESULTS
from matplotlib.figure import Figure
from pages import Pages, badly_chosen, in_words, percent, said, table

from optax_ext.compare import paired
from optax_ext.compare.problems.papers import CALIFORNIA
from optax_ext.compare.run import Result
from optax_ext.compare.statistics import Difference, adjust
from optax_ext.compare.tables import mean_of_survivors

RULES = ("additive", "multiplicative", "depth")
# Of CaAdam's published comparisons: end of the folder's name, option, title.
INITIALISATIONS = (
  ("published", "", "one initialisation, as published"),
  ("own-init", " --own-init", "own initialisations"),
)
LOGITS = ("plain", "batch_norm", "l2")
SCHEDULES = {  # folder: schedule of the learning rate, options
  "cosine": ("cosine schedule", "--schedule cosine"),
  "constant": ("constant schedule", "--schedule constant"),
  "constant-3-tuning-seeds": ("constant schedule, 3 tuning seeds", "--schedule constant --tuning-seeds 3"),
}
TUNED = (
  *(f"caadam/{network}-fair" for network in CALIFORNIA[:2]),
  *(f"exadam/{size}" for size in ("small", "full")),
  *(f"images/{kind}" for kind in ("cosine", "constant", "resnet-fashion-mnist-cosine", "resnet-cifar-10-cosine")),
  *(f"adamnx/{problem}" for problem in ("images", "text")),
)
# Compared with whom, where; ND-Adam under its own conditions alone.
PAIRS = (
  ("EXAdam against Adam", "exadam", "adam", TUNED),
  ("EXAdam without its log step against Adam", "exadam_nolog", "adam", TUNED),
  *((f"CaAdam {rule} as written against Adam", f"caadam_{rule}", "adam", TUNED) for rule in RULES),
  ("AdamNX against AdamW", "adamnx", "adamw", TUNED),
  ("AdamNX's decay against Adam's in the same optimizer", "adamnx", "adam", TUNED),
  ("ND-Adam against Adam", "nd_adam", "adam", tuple(f"nd_adam/{logits}" for logits in LOGITS)),
  ("ND-Adam against SGD with momentum and L2", "nd_adam", "sgd_l2", tuple(f"nd_adam/{logits}" for logits in LOGITS)),
)
SAME_RULE = ("adax as adamnx, matched", "adamnx, matched")
NEARLY_THE_SAME = ("adax", "adamnx")  # β = 1e-4 and 1.005e-4

# What EXAdam's claims are about.
LOSSES = {
  "training, last": lambda result: result.curves["train/loss"][-1],
  "validation, best": lambda result: result.curves["validation/loss"][result.best],
  "validation, last": lambda result: result.curves["validation/loss"][-1],
  "test, best": lambda result: result.curves["test/loss"][result.best],
  "test, last": lambda result: result.curves["test/loss"][-1],
}

Measured = dict[str, list[float]]  # a metric of each run, by optimizer, in the order of the seeds

INTRODUCTION = """# The papers' experiments, run again

This page answers three questions about each paper:

1. What does the paper claim?
2. What comes out when its own comparison is repeated, with all optimizers at one learning rate?
3. What is left when every optimizer, Adam too, has its own best learning rate? That rate is found on validation data,
   with equally many trials for each. Test data and fresh seeds judge it.

A difference is between runs of the same seed: the same initialisation, order of the data and dropout. Brackets hold its
95% bootstrap interval over seeds. The interval is too narrow for few seeds: of normal values it holds the mean in 93%
of cases with 30 seeds, in 84% with 5. The verdicts:

| verdict | condition |
| --- | --- |
| better, worse | p < 0.05 after Holm's adjustment, and the interval excludes 0; needs 5 seeds |
| equal | the interval lies inside ±0.5% of the baseline |
| undecided | all else; where all seeds agree in sign, the table says so |

Networks and data are small: see the limits at the end. Raw results, one line for each run, are in `papers/`. `python
benchmarks/papers/report.py` makes this page of them.
"""

CAADAM = """## CaAdam

Claim: connection-aware step sizes beat Adam on California Housing. The multiplicative rule has an RMSE 1.4 to 2.9%
lower on five of six networks, all at the learning rate 1e-3.

- The paper's code multiplies all kernels by the same factor: 1.95 (additive) or 5 (multiplicative). Its equations say
  otherwise. So for these two rules the paper compares learning rates.
- By depth the code counts variables instead of layers. Its factors do differ from layer to layer.
- "Adam at the same scale" has the learning rate 1e-3 times the geometric mean of the kernels' published factors.
- The paper's two tables disagree on one case, the multiplicative rule on 64-32: its RMSE of 0.446 is 4.3% below the
  paper's Adam, but its gain is given as 2.07%.
"""

EXADAM = """## EXAdam

Claims, on Shakespeare, with all optimizers at 1e-4:

| loss | EXAdam | Adam |
| --- | --- | --- |
| training | 0.611 | 1.322 |
| validation, best | 1.497 | |
| validation, last | 1.794 | 1.567, still falling |

At Adam's learning rate EXAdam's steps are 7 to 28 times as long as Adam's (`tests/test_optimizers.py`). Here the model
is smaller. It reads the first tenth of the text for 2,000 steps. Adafactor is optax's: its steps are relative to the
size of the parameters, and short at 1e-4.
"""

IMAGES = """## Images: EXAdam and CaAdam

| claim | data | claimed | Adam's |
| --- | --- | --- | --- |
| EXAdam, all at 1e-4, accuracy | CIFAR-10 | 92.1% | 89.7% |
| CaAdam multiplicative, accuracy | CIFAR-10 | 83.1% | 79.8% |
| CaAdam multiplicative, accuracy | CIFAR-100 | 50.7% | 47.8% |
| CaAdam by depth, error | Fashion-MNIST | 7.4% | 7.7% |

Here a small convolutional network with strides and batch norm learns from 10,000 images of Fashion-MNIST.
"""

ADAMNX = """## AdamNX

Claim: AdamNX's second-moment decay beats the decays of Adam, Adafactor and AdaX inside the same optimizer. The paper's
top-1 errors on CIFAR-100, one seed at one learning rate, are 39.44 (Adam), 41.22 (Adafactor), 35.22 (AdaX) and 34.27
(AdamNX).

- AdamNX's decay is AdaX's in other symbols. At the defaults they are nearly the same rule.
- Below, adam, adafactor, adax and adamnx are these four decays inside one AdamW. Its weight decay is 0.01, on weights;
  its learning rate falls linearly to 1% over the first 60% of the steps.
- "Matched" is β₂ = 0.945. With it 2,000 steps weigh the past as the paper's training does with 0.99.
- "adax as adamnx, matched" is AdaX at the β that makes it the same rule.
"""

ND_ADAM = """## ND-Adam

Claims: ND-Adam closes the gap in generalisation between Adam and SGD, because it controls the angle of each step
(CIFAR-10, WRN-28-10: 3.70% test error, SGD 3.80%). Batch-normalised logits help further.
"""

LIMITS = """## Limits

- Everything ran on a CPU: small networks, short trainings. `benchmarks/device.sh` runs what needs a GPU, in one
  command; no GPU was at hand. ResNet-20 and the language model of 14.3M parameters (`exadam.py rivals --full`) wait for
  a GPU. EfficientNet and object detection are not among the experiments.
- The search for a learning rate is a grid of half decades. The grid is extended by up to three rates a side where the
  best one is at an edge, refined by 10^(1/4) around the best, and topped up in finer steps until all optimizers have
  equally many trials.
- On images and text one seed chooses the rate, unless told otherwise. An optimizer may be unlucky in its rate, and
  intervals over reporting seeds do not contain that luck. AdaX and AdamNX, nearly the same rule, show how large it is.
- Raw results of runs with more than 20 evaluations hold about eight, the best and the last among them. Steps to target
  need all evaluations. The California comparisons did not keep them: their tables have a – there.
- CaAdam's paper does not say how features and target are standardised. Here they are, by mean and deviation of the
  first 80%, validation included. The paper has one initialisation for all runs, which is unknown to us. Ours is another
  one.
"""


def main(arguments: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the raw results")
  parser.add_argument("--report", type=pathlib.Path, default=RESULTS.parent / "REPORT.md", help="the page to write")
  options = parser.parse_args(arguments)
  pages = Pages(options.results, options.report.parent)
  sections = [caadam(pages), exadam(pages), images(pages), adamnx(pages), nd_adam(pages)]
  missing = ["`--full` and `--resnet` are for a GPU.", "", *(f"- {line}" for line in pages.missing)]
  missing = missing if pages.missing else ["Nothing: all experiments ran."]
  lines = [INTRODUCTION, *in_short(pages), *itertools.chain(*sections), "## Not run yet", "", *missing, ""]
  lines += ["## How to read the tables of tuned comparisons", "", *pages.legend(), "", LIMITS]
  options.report.write_text("\n".join(lines), "utf-8")


def in_short(pages: Pages) -> list[str]:
  """One table of all papers: what is claimed, what one learning rate shows, what tuning leaves."""
  rows = [["optimizer and problem", "claim", "at one learning rate", "each tuned"]]
  for network in CALIFORNIA:
    name = f"caadam/{network}-published"
    values = measured(pages.published(name), "test/rmse")
    gaps = at_same_scale(values) if values else {}
    for rule in RULES:
      claim = claims.CALIFORNIA[network][f"{rule}, as published"].gain
      once = "not run yet"
      if values:
        once = improvement(paired(values[f"{rule}, as published"], values["adam"]), mean(values["adam"]))
        once += f"; against Adam at the same scale {with_verdict(gaps[rule], mean(values['adam']))}"
      case = f"California {network}, RMSE"
      rows.append([f"CaAdam {rule} as published, {case}", f"{claim:+.2f}%", once, "–"])
      if network not in CALIFORNIA[:2]:
        continue
      fair = [pages.verdict(f"caadam/{network}-fair", f"caadam_{rule}", "adam", of) for of in ("at one rate", "tuned")]
      rows.append([f"CaAdam {rule} as written, {case}", "–", *fair])
  california = [
    (f"{label}, California {network}, RMSE", "–", f"caadam/{network}-fair", optimizer, baseline, None)
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
      f"best {claimed(1.497, 1.567)}, last {claimed(1.794, 1.567)} (validation: 1.497, 1.794; Adam's last 1.567)",
      "exadam/small",
      "exadam",
      "adam",
      measured(pages.published("exadam/small"), "test/loss"),
    ),
    *(row for folder in SCHEDULES for row in image_rows(pages, folder)),
    (
      "AdamNX's decay, images, test error",
      f"{claimed(34.27, 39.44)} (CIFAR-100: 34.27%, Adam's decay 39.44%)",
      "adamnx/images",
      "adamnx",
      "adam",
      None,
    ),
    ("AdamNX's decay, text, test loss", "–", "adamnx/text", "adamnx", "adam", None),
  ]
  for logits in LOGITS:
    name, case = f"nd_adam/{logits}", f"images, {logits.replace('_', ' ')} logits, test error"
    claim = f"{claimed(3.70, 3.80)} (CIFAR-10: 3.70%, SGD 3.80%)" if logits == "batch_norm" else "–"
    published = nd_adam_published(pages, logits)
    others.append((f"ND-Adam, against SGD with L2, {case}", claim, name, "nd_adam", "sgd_l2", published))
    others.append((f"ND-Adam, {case}", "lower (no number)", name, "nd_adam", "adam", published))
  for what, claim, name, optimizer, baseline, values in others:
    once = pages.verdict(name, optimizer, baseline, "at one rate")
    if values is not None:  # runs at the rates of the paper
      once = against(values[optimizer], values[baseline]) if values else "not run yet"
    rows.append([what, claim, once, pages.verdict(name, optimizer, baseline, "tuned")])
  explained = (
    "The table says how far an optimizer's mean is below its baseline's mean, in % of the baseline's: + is better. The "
    "baseline is Adam where none is named. Claims are in the same unit, from the papers' own numbers. CaAdam as "
    "published has the factors that its code miscounted: in the additive and multiplicative rules the same for all "
    "kernels. CaAdam as written follows its equations, on the traced network. ND-Adam's one learning rate is 1e-3, as "
    "is Adam's; SGD's is 0.1, as published."
  )
  return ["## In short", "", *counted(pages), *counted_at_same_scale(pages), "", explained, "", *table(rows)]


def image_rows(pages: Pages, folder: str) -> list[tuple[str, str, str, str, str, Measured | None]]:
  """What the short table says of EXAdam and CaAdam on images."""
  case, name = f"images, {SCHEDULES[folder][0]}, test error (one rate: ", f"images/{folder}"
  exadam, published = f"{claimed(7.90, 10.34)} (CIFAR-10: 7.90%, Adam 10.34%)", exadams_rate(pages, folder)
  rows: list[Any] = [(f"EXAdam, {case}1e-4)", exadam, name, "exadam", "adam", published)]
  for rule in RULES:
    gain, accuracy = claims.FASHION_MNIST[rule], claims.FASHION_MNIST_ADAM
    claim = claimed(100 - accuracy * (1 + gain / 100), 100 - accuracy)
    claim += f" (Fashion-MNIST, as published: accuracy {gain:+.2f}% of Adam's {accuracy}%)"
    rows.append((f"CaAdam {rule} as written, {case}1e-3)", claim, name, f"caadam_{rule}", "adam", None))
  found = {optimizer for optimizer, _, _ in pages.differences(name)} or {row[3] for row in rows}
  return [row for row in rows if row[3] in found]


def counted(pages: Pages) -> list[str]:
  """What all comparisons together say of a pair: how often each verdict fell."""
  lines = []
  for label, optimizer, baseline, names in PAIRS:
    found = [pages.differences(name) for name in names if (optimizer, baseline, "tuned") in pages.differences(name)]
    if not found:
      continue
    parts = []
    for comparison, where in (("at one rate", "at one learning rate"), ("tuned", "each tuned")):
      verdicts = [
        of[optimizer, baseline, comparison]["verdict"] for of in found if (optimizer, baseline, comparison) in of
      ]
      parts += [f"{where} {tally(verdicts)}"] if verdicts else []
    lines.append(f"- {label} ({comparisons(found)}): {'; '.join(parts)}.")
  return lines


def counted_at_same_scale(pages: Pages) -> list[str]:
  """The same of CaAdam as published against Adam at the same scale."""
  verdicts = collections.defaultdict(list)
  for network, (suffix, _, title) in itertools.product(CALIFORNIA, INITIALISATIONS):
    if runs := pages.published(f"caadam/{network}-{suffix}"):
      for rule, gap in at_same_scale(measured(runs, "test/rmse")).items():
        verdicts[rule, title.partition(",")[0]].append(gap.verdict)
  return [
    f"- CaAdam {rule} as published against Adam at the same scale ({comparisons(of)}, {title}): {tally(of)}."
    for (rule, title), of in sorted(verdicts.items(), key=lambda item: RULES.index(item[0][0]))
  ]


def comparisons(of: Sequence[Any]) -> str:
  """How many there are."""
  return f"{len(of)} comparison{'s' * (len(of) > 1)}"


def tally(verdicts: Sequence[str]) -> str:
  """How often each fell."""
  return ", ".join(f"{verdict} in {count}" for verdict, count in collections.Counter(verdicts).most_common())


def claimed(value: float, baseline: float) -> str:
  """What a paper claims, in the unit of the results."""
  return f"{100 * (baseline - value) / baseline:+.1f}%"


def caadam(pages: Pages) -> list[str]:
  lines, gaps = [CAADAM], []
  for network, (suffix, option, title) in itertools.product(CALIFORNIA, INITIALISATIONS):
    runs = pages.published(f"caadam/{network}-{suffix}", f"caadam.py published --network {network}{option}")
    if not runs:
      continue
    values = measured(runs, "test/rmse")
    lines += [f"### {network}, {title}", "", f"{len(runs['adam'])} runs each; RMSE of the standardised target.", ""]
    lines += caadam_table(runs, values, claims.CALIFORNIA[network])
    for rule, gap in at_same_scale(values).items():
      gaps.append((f"{network}, {title.split(',')[0]}: {rule}", gap, mean(values["adam"])))
      told = with_verdict(gap, mean(values["adam"]))
      lines.append(f"- {rule}, as published, against Adam at the same scale: {told}.")
    lines.append("")
  if gaps:
    lines += [
      "CaAdam as published against Adam with its learning rate multiplied alike (more is better for CaAdam):",
      "",
    ]
    lines += pages.picture("caadam/scale.png", gap_picture(gaps), "CaAdam as published against Adam at the same scale")
  rules = [f"caadam_{rule}" for rule in RULES]
  for network in CALIFORNIA[:2]:
    command = f"caadam.py fair --network {network}"
    lines += pages.tuned(f"caadam/{network}-fair", f"{network}, every optimizer tuned", command, rules)
  return lines


def at_same_scale(values: dict[str, list[float]]) -> dict[str, Difference]:
  """CaAdam as published against Adam whose learning rate is multiplied alike, by rule."""
  pairs = [(values[f"{rule}, as published"], values[f"adam at the scale of {rule}"]) for rule in RULES]
  return dict(zip(RULES, adjust([paired(*pair) for pair in pairs]), strict=True))


def measured(runs: Mapping[str, Sequence[Result]], metric: str, last: bool = False) -> Measured:
  """A metric of every run where the validation data is best, or after the last step; NaN where the run diverged."""
  of = lambda result: math.nan if result.diverged else result.curves[metric][-1 if last else result.best]
  return {name: [of(result) for result in results] for name, results in runs.items()}


def mean(values: Sequence[float]) -> float:
  return float(np.mean(values))


def caadam_table(
  runs: dict[str, list[Result]], values: dict[str, list[float]], claimed: Mapping[str, claims.Regression]
) -> list[str]:
  """Each optimizer against Adam, as in the paper's Tables I and III, with the paper's own test."""
  rows = [["optimizer", "RMSE", "SD", "epochs", "better than Adam by", "Student's p", "paper's RMSE, epochs, gain"]]
  adam, epoch = values["adam"], runs["adam"][0].steps[0]
  for arm, of in values.items():
    row = [arm, f"{mean(of):.4f}", f"{np.std(of, ddof=1):.4f}", f"{mean([r.steps[-1] for r in runs[arm]]) / epoch:.0f}"]
    test: Any = scipy.stats.ttest_ind(of, adam)
    against = [improvement(paired(of, adam), mean(adam)), f"{test.pvalue:.1g}"] if arm != "adam" else ["–", "–"]
    paper = claimed.get(arm)
    rows.append([*row, *against, f"{paper.rmse:.3f}, {paper.epochs:.0f}, {paper.gain:+.2f}%" if paper else "–"])
  return table(rows)


def improvement(difference: Difference, reference: float) -> str:
  return percent(difference.mean, difference.low, difference.high, reference)


def with_verdict(difference: Difference, reference: float) -> str:
  return f"{improvement(difference, reference)}, {difference.verdict}"


def exadams_rate(pages: Pages, folder: str) -> Measured:
  """EXAdam's and Adam's test errors at 1e-4; none before they ran."""
  return measured(pages.published(f"images/{folder}"), "test/error")


def nd_adam_published(pages: Pages, logits: str, command: str = "") -> Measured:
  """Test errors at the learning rates that are published; none before they ran."""
  return measured(pages.published(f"nd_adam/{logits}-published", command), "test/error", last=True)


def against(values: Sequence[float], baseline: Sequence[float]) -> str:
  """How far values are below a baseline's, seed by seed, and what is said of it."""
  found = paired(values, baseline)
  if found.diverged or found.baseline_diverged:
    return found.verdict
  return f"{improvement(found, mean(baseline))}, {said(found.verdict, values, baseline)}"


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
  for size, parameters, option in (("small", "0.8M", ""), ("full", "14.3M", " --full")):
    name, title = f"exadam/{size}", f"Character GPT of {parameters} parameters on Shakespeare"
    if runs := pages.published(name, f"exadam.py published{option}"):
      lines += [f"### {title}, all at 1e-4", "", *losses(runs, claims.SHAKESPEARE)]
    lines += pages.tuned(name, f"{title}, every optimizer tuned", f"exadam.py tuned{option}", ours)
    best = pages.best(name) if pages.complete(name) else {}
    if best:
      lines += ["#### Training, validation and test loss", "", *losses(best, {})]
    if best.keys() < claims.SHAKESPEARE.keys() | set(ours):
      pages.note_missing(f"exadam.py rivals{option}", pages.begun(name, without=best))
  return lines


def images(pages: Pages) -> list[str]:
  lines = [IMAGES]
  ours = ["exadam", "exadam_nolog", *(f"caadam_{rule}" for rule in RULES)]
  for folder, (schedule, command) in SCHEDULES.items():
    remarks = []
    if values := exadams_rate(pages, folder):
      gap = against(values["exadam"], values["adam"])
      errors = " and ".join(f"{name} {spread(of)}" for name, of in values.items())
      remarks = [f"- exadam against adam at the 1e-4 of its paper (+ is better): {gap}. Test errors: {errors}.", ""]
    lines += pages.tuned(f"images/{folder}", f"Fashion-MNIST, {schedule}", f"images.py {command}", ours, remarks)
  for data in ("fashion-mnist", "cifar-10"):
    name, command = f"images/resnet-{data}-cosine", f"images.py --resnet {data}"
    lines += pages.tuned(name, f"ResNet-20 on {data}", command, ours)
  return lines


def losses(runs: dict[str, list[Result]], paper: dict[str, tuple[float, float]]) -> list[str]:
  """Training, validation and test loss of every optimizer, and the test loss against Adam's."""
  rows = [["optimizer", *LOSSES, "test, best: better than Adam by"]]
  if paper:
    rows[0].append("in the paper: training, last validation")
  at_best = measured(runs, "test/loss")
  for name, of in runs.items():
    row = [name, *(mean_of_survivors([math.nan if r.diverged else loss(r) for r in of]) for loss in LOSSES.values())]
    row.append("–" if name == "adam" else against(at_best[name], at_best["adam"]))
    if paper:
      row.append(", ".join(f"{value:.3f}" for value in paper[name]) if name in paper else "–")
    rows.append(row)
  words = (
    f'Means of {len(runs["adam"])} seeds. "Best" is where the validation loss is least. The training loss is the mean '
    "over the steps since the previous evaluation, with dropout. The paper's model has 14.3M parameters."
  )
  return [words, "", *table(rows)]


def adamnx(pages: Pages) -> list[str]:
  lines = [ADAMNX]
  ours = ["adafactor", "adax", "adamnx", "adamnx, matched", "adax as adamnx, matched"]
  for problem in ("images", "text"):
    name, command = f"adamnx/{problem}", f"adamnx.py --problem {problem}"
    lines += pages.tuned(name, problem.capitalize(), command, ours, noise(pages, name))
  return lines


def noise(pages: Pages, name: str) -> list[str]:
  """What the same rule in other symbols differs by, and what nearly the same rule does; nothing before they ran."""
  if (*SAME_RULE, "tuned") not in pages.differences(name):
    return []
  of_same, of_near = [], []
  for comparison in ("at one rate", "tuned"):
    of_same.append(pages.verdict(name, *SAME_RULE, comparison))
    values = pages.values(name, comparison, pages.deciding(name))
    one, other = (values[of] for of in NEARLY_THE_SAME)
    of_near.append(improvement(paired(one, other), mean(other)))
  tuned = pages.values(name, "tuned", "learning_rate")
  rates = [f"{tuned[of][0]:.3g}" for of in NEARLY_THE_SAME]
  words = (
    f'"{SAME_RULE[0]}" and "{SAME_RULE[1]}" are the same rule in other symbols: at one learning rate {of_same[0]}; '
    f'each tuned, {of_same[1]}. "{NEARLY_THE_SAME[0]}" and "{NEARLY_THE_SAME[1]}" are nearly the same rule, and their '
    f"difference is noise. The first is better by {of_near[0]} at one learning rate. Each tuned, the first is better "
    f"by {of_near[1]}: the one tuning seed took the rates {rates[0]} and {rates[1]}. Intervals over reporting seeds do "
    "not contain that choice. Differences of these sizes say nothing here."
  )
  return [words, ""]


def nd_adam(pages: Pages) -> list[str]:
  lines = [ND_ADAM]
  published = {of: nd_adam_published(pages, of, f"nd_adam.py published --logits {of}") for of in LOGITS}
  for logits, errors in published.items():
    title, name = f"Fashion-MNIST, logits: {logits.replace('_', ' ')}", f"nd_adam/{logits}"
    remarks = []
    if pages.complete(name) and errors:
      rates = pages.facts(f"{name}-published")["rates"]
      others = {optimizer: (rates[optimizer], values) for optimizer, values in errors.items()}
      remarks = badly_chosen(pages.at_rates(name, "tuned"), others)
    lines += pages.tuned(name, title, f"nd_adam.py tuned --logits {logits}", ["nd_adam"], remarks)
  lines += [*logits_compared(pages), *at_published_rates(published)]
  if pages.complete("nd_adam/plain"):
    lines += equal_training_loss(pages.best("nd_adam/plain"))
  if runs := pages.published("nd_adam/initial-scale", "nd_adam.py claims"):
    lines += initial_scale(runs)
  angles = {
    path.stem: json.loads(path.read_text("utf-8"))["layers"]
    for path in sorted((pages.folder / "nd_adam/angles").glob("*.json"))
  }
  return lines + (angle_lines(pages, angles) if angles else [])


def logits_compared(pages: Pages) -> list[str]:
  """Test error by optimizer and logits."""
  done = [logits for logits in LOGITS if pages.complete(f"nd_adam/{logits}")]
  if len(done) < 2:
    return []
  errors = {logits: pages.values(f"nd_adam/{logits}", "tuned", "test/error last") for logits in done}
  words = "Test error after the last step (mean and SD over seeds), each optimizer tuned for each kind of logits."
  of_nd_adam = {logits: of["nd_adam"] for logits, of in errors.items()}
  return ["### Logits compared", "", words, "", *by_logits(errors), *against_plain(of_nd_adam), ""]


def at_published_rates(published: Mapping[str, Measured]) -> list[str]:
  """The same at learning rates that were not tuned; of what has run."""
  errors = {logits: of for logits, of in published.items() if of}
  words = (
    "ND-Adam at its authors' 1e-3 (its vectors at 50 times that), SGD with momentum and L2 at their 0.1, Adam at 1e-3. "
    "The lines below the table say how far ND-Adam's error is below the others'."
  )
  sentences = [
    f"- {logits.replace('_', ' ')} logits: against sgd_l2 {against(of['nd_adam'], of['sgd_l2'])}; against adam "
    f"{against(of['nd_adam'], of['adam'])}."
    for logits, of in errors.items()
  ]
  return ["### At the published learning rates", "", words, "", *by_logits(errors), *sentences, ""] if errors else []


def by_logits(errors: Mapping[str, Measured]) -> list[str]:
  """A table of errors: a line an optimizer, a column for each kind of logits."""
  rows = [["optimizer", *(logits.replace("_", " ") for logits in errors)]]
  for name in next(iter(errors.values())):
    rows.append([name, *(spread(of.get(name, [])) for of in errors.values())])
  return table(rows)


def against_plain(errors: dict[str, list[float]]) -> list[str]:
  """What other logits than the plain ones change for ND-Adam, seed by seed."""
  others = [logits for logits in errors if logits != "plain" and "plain" in errors]
  sentences = []
  for logits, found in zip(others, adjust([paired(errors[of], errors["plain"]) for of in others]), strict=True):
    verdict = {"verdict": found.verdict, "said": said(found.verdict, errors[logits], errors["plain"])}
    words = in_words(dataclasses.asdict(found) | verdict)
    sentences.append(f"- nd_adam, {logits.replace('_', ' ')} logits against plain ones on the same seeds: {words}.")
  return sentences


def spread(errors: Sequence[float]) -> str:
  """Mean and SD in % of the runs that did not diverge, and how many did."""
  alive = [100 * error for error in errors if math.isfinite(error)]
  lost = f", {len(errors) - len(alive)} of {len(errors)} diverged" if len(alive) < len(errors) else ""
  return f"{np.mean(alive):.2f}% (SD {np.std(alive, ddof=1):.2f}{lost})" if len(alive) > 1 else "–"


def equal_training_loss(runs: dict[str, list[Result]]) -> list[str]:
  """Test error where the training loss first falls to what every optimizer reaches."""
  alive = {name: [result for result in of if not result.diverged] for name, of in runs.items()}
  ends = [(result.curves["train/loss"][-1], name) for name, of in alive.items() for result in of]
  reached, least_far = max(ends)
  rows = [["optimizer", "test error", "steps"]]
  for name, of in alive.items():
    at = [next(i for i, loss in enumerate(result.curves["train/loss"]) if loss <= reached) for result in of]
    errors = [result.curves["test/error"][i] for result, i in zip(of, at, strict=True)]
    steps = [result.steps[i] for result, i in zip(of, at, strict=True)]
    lost = [math.nan] * (len(runs[name]) - len(of))
    rows.append([name, spread(errors + lost), f"{mean(steps):.0f}" if steps else "–"])
  words = (
    f"Test error where the training loss, the running mean of an epoch, is first at most {reached:.3f}. {least_far} "
    "ends with the highest training loss, and so sets this bar. It is measured at its end, the others earlier in the "
    "cosine, before their learning rates have fallen as far."
  )
  return ["### Test error at equal training loss", "", words, "", *table(rows)]


def initial_scale(runs: dict[str, list[Result]]) -> list[str]:
  """Test error by factor of the initial kernels."""
  rows = [["optimizer", "kernels × 0.1", "× 1", "× 10", "largest change of the mean"]]
  for name in dict.fromkeys(arm.partition(",")[0] for arm in runs):
    small, same, large = (
      [100 * r.curves["test/error"][-1] for r in runs[f"{name}, kernels × {scale}"]] for scale in (0.1, 1.0, 10.0)
    )
    change = max((mean(of) - mean(same) for of in (small, large)), key=abs)
    each = (f"{mean(of):.2f}% ({min(of):.2f} to {max(of):.2f})" for of in (small, same, large))
    rows.append([name, *each, f"{change:+.2f} points"])
  words = (
    "Test error (mean, least to most of 3 seeds) at the tuned rate. ND-Adam starts from normalised kernels. So the "
    "factor is gone before its first step, and only rounding is left. The other optimizers show what this saves."
  )
  return ["### Initial kernels multiplied", "", words, "", *table(rows)]


def angle_lines(pages: Pages, angles: dict[str, dict[str, dict[str, list[float]]]]) -> list[str]:
  """How the angle of a step and the length of vectors change, beside the schedule."""
  rows = [["optimizer", "length after a tenth", "at the end", "angle over schedule, 2nd tenth to 1st", "9th to 2nd"]]
  changes: dict[str, tuple[float, float, float]] = {}
  figure = Figure(figsize=(11, 4), layout="constrained")
  panels = figure.subplots(1, 2)
  for color, (name, layers) in zip(itertools.cycle([f"C{i}" for i in range(10)]), angles.items(), strict=False):
    angle, length = (np.mean([of[what] for of in layers.values()], axis=0) for what in ("angle", "length"))
    count = np.arange(len(angle))
    relative = angle / (0.5 * (1 + np.cos(math.pi * count / len(angle))))
    tenth = max(len(angle) // 10, 1)
    first, second, ninth = (relative[at : at + tenth].mean() for at in (0, tenth, len(relative) - 2 * tenth))
    changes[name] = (length[len(length) // 5] / length[0], second / first, ninth / second)
    times = (length[tenth] / length[0], length[-1] / length[0], *changes[name][1:])
    rows.append([name, *(f"× {value:.2f}" for value in times)])
    panels[0].plot(count + 1, angle, color=color, label=name, linewidth=1)
    panels[1].plot(count + 1, length, color=color, label=name, linewidth=1)
  for panel, title in zip(panels, ["angle of a step (radians)", "length of the vectors"], strict=True):
    panel.set(title=title, xlabel="step", yscale="log")
    panel.spines[["top", "right"]].set_visible(False)
  panels[1].legend(frameon=False)
  (growth, early, late), (_, nd_early, nd_late) = changes["adam"], changes["nd_adam"]
  words = (
    "Means over the units of all four convolutions, seed 0, tuned rates. The claims: Adam's angle shrinks as its "
    "vectors grow; ND-Adam's angle follows the schedule (× 1 in the table's last two columns). In the first fifth of "
    f"the steps Adam's vectors grow × {growth:.2f}. Relative to the schedule Adam's angle changes by × {early:.2f} "
    f"there, ND-Adam's by × {nd_early:.2f} (the first tenth contains the start, where all take large steps). Later "
    f"Adam's angle changes by × {late:.2f}, ND-Adam's by × {nd_late:.2f}: ND-Adam's is "
    f"{'' if abs(nd_late - 1) < abs(late - 1) else 'not '}nearer to the schedule."
  )
  return ["### Angles", "", words, "", *table(rows), *pages.picture("nd_adam/angles.png", figure, "angles and lengths")]


if __name__ == "__main__":
  main()
