"""A comparison split over processes is the same comparison."""

import json
import pathlib
import shutil

import jax
import optax
import pytest
from test_compare import linear

from optax_ext.compare import Optimizer, Protocol, compare
from optax_ext.compare import __main__ as command_line
from optax_ext.compare.processes import absent, check_process, share
from optax_ext.compare.run import Runner

OPTIONS = {"learning_rates": [0.01, 0.03], "batching": "map", "tuning_seeds": 2, "seeds": 2, "progress": False}


def arms(*names):
  """`fast` trains at 10 times its rate, so that its grid is extended by another number of rates than the others'."""
  make = {"sgd": optax.sgd, "fast": lambda rate: optax.sgd(10 * rate), "momentum": lambda rate: optax.sgd(rate, 0.9)}
  return [Optimizer(name, make[name], 0.01, baselines=() if name == "sgd" else ("sgd",)) for name in names]


def found_by(names=("sgd", "fast", "momentum"), **options):
  return compare(linear(), arms(*names), Protocol(8, 4), devices=jax.devices()[:1], **OPTIONS, **options)


@pytest.mark.heavy
@pytest.mark.parametrize("quick", [True, False])
def test_two_processes_find_what_one_finds_to_the_bit(quick, tmp_path, monkeypatch):
  """One of them was interrupted, and the folder of one was copied from elsewhere."""
  whole = found_by(quick=quick)
  trials = {len(arm.search.trials) for arm in whole.arms.values()}
  assert len(trials) == (2 if quick else 1)  # else all are topped up to the most
  one, other = (
    found_by(quick=quick, out=tmp_path, process=(1, 2)),
    found_by(quick=quick, out=tmp_path / "2", process=(2, 2)),
  )
  assert (list(one.arms), list(other.arms)) == (["sgd", "momentum"], ["fast"])
  assert not one.tuned
  shutil.move(tmp_path / "2" / "process-2-of-2", tmp_path)
  file = tmp_path / "process-1-of-2" / "finished.jsonl"
  if not quick:
    file.write_text(file.read_text()[:-40])  # its last run is lost
  before = file.read_text()

  done = []
  run = Runner.run
  monkeypatch.setattr(Runner, "run", lambda self, tasks, *args: done.append(len(tasks)) or run(self, tasks, *args))
  if quick:
    monkeypatch.setattr(Runner, "race", lambda *args: pytest.fail("a race is done again"))
  gathered = found_by(quick=quick, out=tmp_path)
  assert file.read_text() == before
  for name, arm in whole.arms.items():
    again = gathered.arms[name]
    for one, other in ((arm.search, again.search), (arm.reported, again.reported), (arm.single, again.single)):
      assert repr(one) == repr(other)  # every digit; a NaN is one
  assert gathered.summary() == whole.summary() == (tmp_path / "summary.md").read_text()
  assert sum(done) < 10  # of 3 * (2 * 2 + 2 * 4) at least
  assert (done == []) == quick

  shutil.rmtree(tmp_path / "process-1-of-2")
  done.clear()
  assert found_by(quick=quick, out=tmp_path).summary() == whole.summary()
  assert done == []


@pytest.mark.heavy
def test_folders_of_another_experiment_or_program_are_not_gathered(tmp_path, monkeypatch):
  found_by(["sgd", "fast"], quick=True, out=tmp_path, process=(1, 1))
  found_by(["sgd"], quick=True, out=tmp_path)
  keys = [json.loads(line)["key"] for line in (tmp_path / "finished.jsonl").read_text().splitlines()[1:]]
  assert {key.partition("|")[0] for key in keys} == {"sgd"}  # whose program was looked at
  (tmp_path / "finished.jsonl").unlink()
  part = tmp_path / "process-1-of-1"
  text = (part / "programs.json").read_text()
  (part / "programs.json").write_text(text.replace('"sgd": "', '"sgd": "changed'))
  with pytest.raises(ValueError, match="process-1-of-1' holds runs of 'sgd' that another program made"):
    found_by(["sgd"], quick=True, out=tmp_path)
  (part / "programs.json").write_text(text)
  lines = (part / "finished.jsonl").read_text().splitlines(keepends=True)
  (part / "finished.jsonl").write_text("".join(['{"experiment": "another"}\n', *lines[1:]]))
  with pytest.raises(ValueError, match=r"process-1-of-1/finished\.jsonl' holds runs of another experiment"):
    found_by(["sgd"], quick=True, out=tmp_path)
  shutil.rmtree(part)
  found_by(["sgd"], quick=True, out=tmp_path)  # what was refused has left nothing behind


def test_a_folder_that_is_missing_is_told():
  found = [pathlib.Path("out", name) for name in ("process-1-of-2", "process-3-of-3")]
  assert absent(found) == ["process-2-of-2", "process-1-of-3", "process-2-of-3"]
  assert absent([]) == []


def test_every_optimizer_is_in_one_share():
  optimizers = dict.fromkeys("abcde")
  assert [list(share((number, 3), optimizers)) for number in (1, 2, 3)] == [["a", "d"], ["b", "e"], ["c"]]
  with pytest.raises(ValueError, match="process 6 of 6 has nothing to do: optimizers are shared, and there are 5"):
    share((6, 6), optimizers)


@pytest.mark.parametrize("process", [(0, 2), (3, 2), (1, 2, 3), "1/2", 1, (1.0, 2), (True, 2)])
def test_bad_processes(process):
  with pytest.raises(ValueError, match=r"process must be \(k, n\), the k-th of n from 1 on"):
    check_process(process, "out")
  with pytest.raises(ValueError, match="process needs out"):
    check_process((1, 2), None)


@pytest.mark.parametrize(
  ("text", "message"), [("2", "--process must be K/N, as 1/2, but was '2'"), ("1/x", "--process"), ("3/2", "k-th of n")]
)
def test_bad_processes_of_a_command(text, message):
  with pytest.raises(SystemExit, match=message):
    command_line.main(["--optimizers", "adam", "--process", text])


@pytest.mark.heavy
def test_a_command_does_its_share_and_another_gathers(tmp_path, capsys):
  command = [
    "--problem",
    "test_compare:linear",
    "--optimizers",
    "sgd,adam",
    "--learning-rates",
    "0.05",
    "--epochs",
    "1",
  ]
  command += ["--seeds", "1", "--tuning-seeds", "1", "--quick", "--batching", "map", "--out", str(tmp_path)]
  for number in (1, 2):
    command_line.main([*command, "--process", f"{number}/2"])
  said = capsys.readouterr().out
  assert f"The runs of sgd are in {tmp_path / 'process-1-of-2'}; gather all without --process." in said
  assert not (tmp_path / "summary.md").exists()
  command_line.main(command)
  assert "# linear: sgd, adam" in capsys.readouterr().out
