"""Progress says what is compiling, how long all will take, and what a folder holds, one line a phase in a log."""

import io
import time

import pytest

from optax_ext.compare import Protocol
from optax_ext.compare.design import Design
from optax_ext.compare.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  return now


def test_lines_of_a_log(clock):
  """Two optimizers of 2 runs of 100 steps each: compiling takes 10 s, then a step 0.1 s; one run is in the folder."""
  file = io.StringIO()

  def after(seconds, steps):
    clock[0] += seconds
    shown.add(steps)

  with Progress(True, 2, 400, file) as shown:
    shown.phase(0, "adam", "tuning", runs=2, missing=2)
    after(10, 10)
    after(9, 90)
    after(10, 100)
    shown.end()
    shown.phase(1, "lion", "tuning", runs=2, missing=1)
    shown.more(-100)
    after(10, 100)
    shown.end()
    shown.phase(0, "adam", "reporting", runs=1, missing=0)
  assert file.getvalue().splitlines() == [
    "[0:00:00] tuning adam (1 of 2): 2 runs; compiling",
    "[0:00:10] adam: compiled, and the first 10 steps done, after 10 seconds",
    "[0:00:19] about 40 seconds for the 300 steps to come",
    "[0:00:29] adam: done after 29 seconds; about 30 seconds left",
    "[0:00:29] tuning lion (2 of 2): 2 runs, 1 of them in the folder; compiling",
    "[0:00:39] lion: compiled, and the first 100 steps done, after 10 seconds",
    "[0:00:39] lion: done after 10 seconds",
    "[0:00:39] reporting adam (1 of 2): 1 run, 1 of them in the folder",
  ]


def test_nothing_is_said_where_nothing_is_to_be_shown(capsys):
  with Progress(False, 1, 10) as shown:
    shown.phase(0, "adam", "tuning", 1, 1)
    shown.add(10)
    shown.end()
  assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_one_live_line(clock):
  """With rich; the phases change its description, and lines are for what stays true."""
  pytest.importorskip("rich", reason="without rich a terminal gets the lines of a log")

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  file = Terminal()
  with Progress(True, 1, 100, file) as shown:
    shown.phase(0, "adam", "tuning", runs=1, missing=1)
    assert shown.bar.tasks[0].description == "tuning adam, optimizer 1 of 1, compiling"
    clock[0] += 10
    shown.add(10)
    clock[0] += 9
    shown.add(60)
    assert shown.bar.tasks[0].description == "tuning adam, optimizer 1 of 1"
    assert (shown.bar.tasks[0].completed, shown.bar.tasks[0].fields["left"]) == (70, "about 4 seconds left")
  assert "about 4 seconds for the 30 steps to come" in file.getvalue()


@pytest.mark.parametrize(
  ("seconds", "words"),
  [(1, "1 second"), (8.4, "8 seconds"), (840, "14 minutes"), (7800, "2 hours 10 minutes"), (3600, "1 hour")],
)
def test_durations(seconds, words):
  assert duration(seconds) == words


@pytest.mark.parametrize(
  ("design", "single_rate", "steps", "lines"),
  [
    (  # 2·((7 + 2)·3 + 2·8) runs
      Design(Protocol(40, 10), 2, 7, 16, "A", False, range(3), range(8)),
      1e-3,
      86 * 40,
      ["2 optimizers × (9 trials × 3 tuning seeds + 2 × 8 reporting seeds): 86 runs of at most 40 steps"],
    ),
    (  # 16·1 + 3 runs
      Design(Protocol(40, 10), 1, 7, 16, "B", False, range(1), range(3)),
      0.0,
      19 * 40,
      [
        "1 optimizer × (16 trials × 1 tuning seed + 3 reporting seeds): 19 runs of at most 40 steps",
        "no difference can be decided with 3 reporting seeds: 5 are needed",
      ],
    ),
    (  # 2·(2·(7·10 + 4·10 + 2·20) + 5·40): less than a third of the full design's
      Design(Protocol(40, 10), 2, 7, 16, "A", True, range(2), range(5)),
      0.0,
      1000,
      [
        "2 optimizers × (7 rates × 2 tuning seeds, half of which end at an eighth of the steps, half of the others at "
        "a quarter, half of those at a half, + 5 reporting seeds): as many steps as 25 runs of at most 40 steps"
      ],
    ),
  ],
  ids=["full", "track B", "quick"],
)
def test_what_a_design_costs(design, single_rate, steps, lines):
  assert design.steps(single_rate) == steps
  assert design.lines(single_rate) == lines
