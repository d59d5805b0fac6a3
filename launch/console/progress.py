"""Progress of long work on stderr: rate and time left.

One line on a terminal, a line now and then in a log.
"""

import sys
import time

LOG_SECONDS = 15.0  # between lines where stderr is a file
TERMINAL_SECONDS = 0.2


def duration(seconds: float) -> str:
  """3725 -> '1h02m', 75 -> '1m15s', 9.4 -> '9s'."""
  whole = int(round(seconds))
  minutes, seconds = divmod(whole, 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}h{minutes:02d}m"
  if minutes:
    return f"{minutes}m{seconds:02d}s"
  return f"{seconds}s"


def say(text: str) -> None:
  """A line for the screen; standard output is left to what a command makes."""
  # on a terminal it takes the place of a line of progress, which the next one renews
  start = "\r\033[K" if sys.stderr.isatty() else ""
  print(start + text, file=sys.stderr, flush=True)


class Progress:
  """Counts `total` units of work.

      with Progress(len(jobs), "rendering", "objects") as progress:
        for job in jobs: ...; progress.update(loss=0.1)

  `done` units finished by an earlier run count towards the total, not towards the rate.
  """

  def __init__(self, total: int, label: str, unit: str = "", *, done: int = 0, stream=None):
    self.total = total
    self.label = label
    self.unit = unit
    self.count = self.start_count = done
    self.fields: dict[str, object] = {}
    # where it is shown, when that was last done, and how wide the line was
    self.stream = stream or sys.stderr
    self.terminal = self.stream.isatty()
    self.start = self.last_print = time.monotonic()
    self.width = 0

  def __enter__(self):
    return self

  def __exit__(self, kind, value, traceback):
    if kind is None or self.terminal:
      self._print(end="\n")

  def update(self, n: int = 1, **fields) -> None:
    """Adds n finished units; `fields` are shown behind the rate."""
    self.count += n
    self.fields.update(fields)
    # the last line is printed on leaving
    if self.count >= self.total:
      return
    if self.terminal:
      pause, end = TERMINAL_SECONDS, "\r"
    else:
      pause, end = LOG_SECONDS, "\n"
    now = time.monotonic()
    if now - self.last_print >= pause:
      self.last_print = now
      self._print(end)

  def text(self) -> str:
    """The line as shown."""
    counted = f"{self.label} {self.count}/{self.total} {self.unit}"
    parts = [counted.rstrip()]

    # Time taken, or time left at the rate of this run.
    seconds = time.monotonic() - self.start
    done_here = self.count - self.start_count
    if self.count >= self.total:
      parts.append(f"done in {duration(seconds)}")
    elif seconds > 0 and done_here > 0:
      rate = done_here / seconds
      left = (self.total - self.count) / rate
      parts.append(f"{rate:.3g}/s, {duration(left)} left")

    for name, value in self.fields.items():
      shown = f"{value:.4g}" if isinstance(value, float) else value
      parts.append(f"{name} {shown}")
    return "  ".join(parts)

  def _print(self, end: str) -> None:
    text = self.text()
    line = text
    # on a terminal it covers the one before it
    if self.terminal:
      line = text.ljust(self.width)
    self.width = len(text)
    print(line, end=end, file=self.stream, flush=True)
