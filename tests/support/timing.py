"""`--times=FILE`: what the tests cost, as a table of files, the costliest first.

Seconds of the processor are those of the test's process and of the processes it waited for; they
hardly depend on what else the machine does. Wall seconds are those of a worker.
"""

import collections
import os
import time

import pytest

NAME = "seconds"  # of the property of a report that carries (processor, wall) to the main process


def pytest_addoption(parser) -> None:
  parser.addoption("--times", metavar="FILE", help="write seconds by test file to FILE")


def pytest_configure(config) -> None:
  # workers of xdist measure, the main process writes
  if config.getoption("--times"):
    config.pluginmanager.register(Timing(config.getoption("--times")), "times")


def processor_seconds() -> float:
  t = os.times()
  return t.user + t.system + t.children_user + t.children_system


class Timing:
  """Measures each test from its set-up to the end of its tear-down."""

  def __init__(self, file: str):
    self.file = file
    self.begun = (0.0, 0.0)
    self.rows: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)

  @pytest.hookimpl(tryfirst=True)
  def pytest_runtest_setup(self, item) -> None:
    self.begun = processor_seconds(), time.monotonic()

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_makereport(self, item, call):
    report = yield
    if report.when == "teardown":
      processor, wall = self.begun
      spent = processor_seconds() - processor, time.monotonic() - wall
      report.user_properties.append((NAME, spent))
    return report

  def pytest_runtest_logreport(self, report) -> None:
    if report.when == "teardown":
      spent = dict(report.user_properties)[NAME]
      file, _, _ = report.nodeid.partition("::")
      self.rows[file].append(tuple(spent))

  @pytest.hookimpl(trylast=True)
  def pytest_sessionfinish(self, session) -> None:
    if not hasattr(session.config, "workerinput"):
      with open(self.file, "w") as out:
        out.write(table(self.rows))


def table(rows: dict[str, list[tuple[float, float]]]) -> str:
  """Processor seconds, wall seconds and number of tests of each file, and their sum."""
  sums = []
  whole_processor, whole_wall, whole_count = 0.0, 0.0, 0
  for file, tests in rows.items():
    processor = sum(spent for spent, _ in tests)
    wall = sum(spent for _, spent in tests)
    sums.append((processor, wall, len(tests), file))
    whole_processor += processor
    whole_wall += wall
    whole_count += len(tests)
  sums.sort(key=lambda row: -row[0])
  sums.append((whole_processor, whole_wall, whole_count, "all"))

  lines = [f"{'processor s':>11s} {'wall s':>8s} {'tests':>6s}  file"]
  for processor, wall, count, file in sums:
    lines.append(f"{processor:11.1f} {wall:8.1f} {count:6d}  {file}")
  return "\n".join(lines) + "\n"
