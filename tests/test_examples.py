"""The scripts of examples/ say what they found and where they put it, and refuse bad options.

`.ci/run` runs all, most of them by building the site.
"""

import argparse
import importlib
import pathlib
import sys

import jax
import numpy as np
import optax
import pytest

ROOT = pathlib.Path(__file__).parents[1]
TRAINING = ["train_digits", "train_digits_linen"]


@pytest.fixture
def example(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / "examples"))
  return importlib.import_module


@pytest.mark.heavy
@pytest.mark.filterwarnings("error::UserWarning")  # as of a donated buffer that the step cannot use
def test_training(example, monkeypatch, tmp_path, capsys):
  out = tmp_path / "new" / "folder"
  options = ["--epochs", 1, "--optimizers", "adam", "nd_adam", "--learning-rate", 2e-3, "--seed", 1, "--out", out]
  monkeypatch.setattr(sys, "argv", ["train_digits.py", *map(str, options)])
  example("train_digits").main()
  result = capsys.readouterr()
  assert result.err == ""
  picture = out / "train_digits.png"
  assert picture.read_bytes().startswith(b"\x89PNG")
  assert result.out.splitlines()[-1] == f"Loss curves: {picture}"
  rows = [line.split() for line in result.out.splitlines() if "%" in line]
  cells = {row[0]: row[1:] for row in rows}
  assert cells["adam"][-1] == "1.00"  # its own time per step
  for name in "adam", "nd_adam":
    accuracy, loss, epoch, time = cells[name]
    assert float(accuracy.rstrip("%")) > 20  # guessing gives 10
    assert 0 < float(loss) < 3
    assert epoch == "1"
    assert 0.2 < float(time) < 5


@pytest.mark.heavy
def test_unknown_optimizer(example, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(sys, "argv", ["train_digits.py", "--optimizers", "adam", "adamm", "--out", str(tmp_path / "out")])
  with pytest.raises(SystemExit) as stopped:
    example("train_digits").main()
  assert stopped.value.code == 2
  assert capsys.readouterr() == (
    "",
    "Unknown optimizer 'adamm'; the known ones are adam, adamw, exadam, exadam_nolog, adamnx, caadam_additive, "
    "caadam_multiplicative, caadam_depth, nd_adam.\n",
  )
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    (["--epochs", "0"], "--epochs must be at least 1, but was 0."),
    (["--learning-rate", "-1"], "--learning-rate must be a finite number of at least 0, but was -1.0."),
    (["--learning-rate", "nan"], "--learning-rate must be a finite number of at least 0, but was nan."),
    (["--seed", "-1"], "--seed must be at least 0 and below 2**32, but was -1."),
    (["--optimizers", ","], "--optimizers must name at least one of adam, adamw,"),
    (["--out", "file/out"], "--out names the folder 'file/out', which cannot be written to: Not a directory."),
    (["--out", "file"], "--out names the folder 'file', which cannot be written to: File exists."),
  ],
)
def test_bad_options(options, sentence, example, monkeypatch, tmp_path, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").touch()
  monkeypatch.setattr(sys, "argv", ["train_digits.py", *options])
  with pytest.raises(SystemExit) as stopped:
    example("digits").parse_options("")
  assert stopped.value.code == 2
  assert capsys.readouterr().err.startswith(sentence)


def test_options_by_default(example, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  digits = example("digits")
  monkeypatch.setattr(sys, "argv", ["train_digits.py"])
  assert digits.parse_options("").optimizers == list(digits.OPTIMIZERS)
  assert (tmp_path / "out").is_dir()
  monkeypatch.setattr(sys, "argv", ["train_digits.py", "--optimizers", "nd_adam,adam", "adam"])
  assert digits.parse_options("").optimizers == ["nd_adam", "adam"]


def test_data(example):
  parts = example("digits").load()
  assert [len(part.labels) for part in parts] == [1197, 300, 300]
  rows = np.concatenate([part.pixels.reshape(-1, 64) for part in parts])
  assert rows.min() == 0
  assert rows.max() == 1
  assert len(np.unique(rows, axis=0)) == 1797  # no image is in two parts
  first, again, next_epoch = (next(parts[0].batches(seed=3, epoch=epoch))[1] for epoch in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (first != next_epoch).any()


def test_report_of_runs_that_diverged(example, tmp_path, capsys):
  digits = example("digits")
  history = digits.History(step_seconds=[2.0, 1.0, 1.0])
  assert not history.end_epoch([float("nan")], float("nan"))
  assert not history.end_epoch([float("nan")], float("inf"))
  digits.print_table({"exadam": history})
  assert "exadam nan% inf 0 1000.00" in " ".join(capsys.readouterr().out.split())
  options = argparse.Namespace(epochs=2, out=tmp_path)
  assert digits.save_picture({"exadam": history}, options, "x.png").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("script", TRAINING)
def test_step_is_donated_and_compiled_once(script, example, monkeypatch):
  digits, module = example("digits"), example(script)
  traced = []
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels
  counted = lambda *args: traced.append(1) or cross_entropy(*args)  # Python runs only while a step is traced
  monkeypatch.setattr(optax, "softmax_cross_entropy_with_integer_labels", counted)
  single = module.create("exadam", 0, 1e-3)
  batches = list(digits.load()[0].batches(0, 0))
  arrays = lambda: [leaf for leaf in jax.tree.leaves(state()) if isinstance(leaf, jax.Array)]
  if script == "train_digits":
    state = lambda: (single.model, single.optimizer)
    step = lambda batch: single.step(*state(), *batch)
  else:
    state = lambda: single.state

    def step(batch):
      single.state, _ = single.step(single.state, *batch)

  step(batches[0])
  before = arrays()
  step(batches[1])
  step(batches[2])
  assert len(before) > 30
  assert all(leaf.is_deleted() for leaf in before)
  assert len(traced) == 1
