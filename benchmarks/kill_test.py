"""Kills a training run with SIGKILL at random moments, restarts it, and compares its end with a run never killed.

The run is examples/train_sharded.py, saving asynchronously at every step; its end is a hash of all weights and moments.
With several processes one of them is killed, and the rest of the job is ended as a job's launcher ends it.

python benchmarks/kill_test.py --kills 20 > benchmarks/results/kill_test.md
python benchmarks/kill_test.py --kills 3 --processes 2
"""

import argparse
import dataclasses
import datetime
import os
import pathlib
import queue
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 240  # seconds without a line from a run


@dataclasses.dataclass(frozen=True)
class Kill:
  """One life of the run, and how it ended.

  Attributes:
    resumed: The step of the checkpoint that the life started from, 0 for none; `None` if it was killed before it said.
    reached: The last step that it said it had finished.
    unfinished: Checkpoints that were being written when it was killed.
  """

  resumed: int | None
  reached: int
  unfinished: int


class Job:
  """The processes of one life of a run, with all that process 0 prints."""

  def __init__(self, folder: pathlib.Path, steps: int, processes: int, devices: int):
    options = ["--steps", steps, "--checkpoints", folder, "--save-every", 1, "--width", 32, "--batch-size", 64]
    port = _free_port()
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}",
      "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
    }
    self.lines: queue.Queue[str | None] = queue.Queue()
    self.processes = []
    command = [sys.executable, ROOT / "examples" / "train_sharded.py", *options]
    for i in range(processes):
      if processes > 1:
        several = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", processes, "--process-id", i]
      else:
        several = []
      with open(f"{folder}.{i}.log", "ab") as errors:
        out = subprocess.PIPE if i == 0 else subprocess.DEVNULL
        words = [str(word) for word in [*command, *several]]
        self.processes.append(subprocess.Popen(words, env=environment, stdout=out, stderr=errors, text=True))
    self.reader = threading.Thread(target=self._read, daemon=True)
    self.reader.start()

  def _read(self) -> None:
    if out := self.processes[0].stdout:
      with out:
        for line in out:
          self.lines.put(line)
    self.lines.put(None)

  def line(self) -> str | None:
    """The next line, `None` at the end."""
    return self.lines.get(timeout=PATIENCE)

  def rest(self) -> list[str]:
    """All lines up to the end."""
    return list(iter(self.line, None))

  def kill(self, one: int) -> None:
    """Ends one process with SIGKILL, and then the others, which cannot go on without it."""
    self.processes[one].kill()
    self.processes[one].wait()
    for process in self.processes:
      process.kill()
    self.wait()

  def wait(self) -> None:
    """Until all have ended."""
    for process in self.processes:
      process.wait(PATIENCE)
    self.reader.join(PATIENCE)


def end_of(lines: list[str]) -> str:
  """The hash that a finished run prints last."""
  ends = [line.split()[-1] for line in lines if line.startswith("weights and moments")]
  if not ends:
    raise RuntimeError(f"The run did not finish; it printed {lines[-3:]}, and its errors are in the .log files.")
  return ends[0]


def whole_run(folder: pathlib.Path, steps: int, processes: int = 1, devices: int = 8) -> str:
  """The end of a run that is never killed."""
  job = Job(folder, steps, processes, devices)
  lines = job.rest()
  job.wait()
  return end_of(lines)


def killed_run(
  folder: pathlib.Path, steps: int, kills: int, seed: int, processes: int = 1, devices: int = 8
) -> tuple[str, list[Kill]]:
  """The end of a run that is killed `kills` times, and each life.

  Each moment is a random delay after a step of the run, so that it makes progress; every fourth is a random time after
  the start, wherever that may be.
  """
  rng = random.Random(seed)
  last_steps = sorted(rng.choices(range(1, steps), k=kills))
  lives = []
  for number, last_step in enumerate(last_steps):
    job = Job(folder, steps, processes, devices)
    resumed, reached, step_seconds, before = None, 0, 0.05, time.monotonic()
    if number % 4 == 3:
      time.sleep(rng.uniform(0, 4))
    else:
      while reached < last_step and (line := job.line()) is not None:
        if "from step" in line:
          resumed = int(line.split()[-1])
        elif line.startswith("step"):
          reached = int(line.split()[1].rstrip(":"))
          now = time.monotonic()
          step_seconds, before = now - before, now
      time.sleep(rng.uniform(0, 2 * min(step_seconds, 0.5)))
    job.kill(rng.randrange(processes))
    for line in job.rest():  # what it had printed by then
      if "from step" in line:
        resumed = int(line.split()[-1])
      elif line.startswith("step"):
        reached = int(line.split()[1].rstrip(":"))
    lives.append(Kill(resumed, reached, len(list(folder.glob("*tmp*")))))
  return whole_run(folder, steps, processes, devices), lives


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--steps", type=int, default=60)
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    expected = whole_run(pathlib.Path(folder, "whole"), options.steps, options.processes)
    end, lives = killed_run(
      pathlib.Path(folder, "killed"), options.steps, options.kills, options.seed, options.processes
    )
  print(f"`{' '.join(['python benchmarks/kill_test.py', *sys.argv[1:]])}`, {datetime.date.today()}\n")
  print("| life | resumed from step | killed after step | checkpoints being written |\n|---|---|---|---|")
  for number, life in enumerate(lives, 1):
    print(
      f"| {number} | {'killed before' if life.resumed is None else life.resumed} | {life.reached} | {life.unfinished} |"
    )
  print(f"\n{len(lives)} restarts of {options.processes} processes in {time.monotonic() - start:.0f} s.")
  print(f"The end is {'the same to the bit' if end == expected else 'ANOTHER'}: {end}, never killed {expected}.")
  sys.exit(end != expected)


if __name__ == "__main__":
  main()
