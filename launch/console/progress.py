"""Progress of long work on stderr: rate and time left.

One line on a terminal, a line now and then in a log.
"""

import sys
import time

LOG_SECONDS = 15.0  # between lines where stderr is a file
TERMINAL_SECONDS = 0.2


def duration(seconds: float) -> str:
  """3725 -> '1h02m', 75 -> '1m15s', 9.4 -> '9s'."""
  minutes, seconds = divmod(int(round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}h{minutes:02d}m"
  return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


class Progress:
  """Counts `total` units of work.

      with Progress(len(jobs), "rendering", "objects") as progress:
        for job in jobs: ...; progress.update(loss=0.1)

  `done` units finished by an earlier run count towards the total, not towards the rate.
  """

  def __init__(self, total: int, label: str, unit: str = "", *, done: int = 0, stream=None):
    self.total, self.label, self.unit = total, label, unit
    self.count = self.start_count = done
    self.stream = stream or sys.stderr
    self.terminal = self.stream.isatty()
    self.start = self.last_print = time.monotonic()
    self.fields: dict[str, object] = {}
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
    now = time.monotonic()
    pause = TERMINAL_SECONDS if self.terminal else LOG_SECONDS
    if now - self.last_print >= pause and self.count < self.total:
      self.last_print = now
      self._print(end="\r" if self.terminal else "\n")

  def text(self) -> str:
    """The line as shown."""
    seconds = time.monotonic() - self.start
    rate = (self.count - self.start_count) / seconds if seconds > 0 else 0.0
    parts = [f"{self.label} {self.count}/{self.total} {self.unit}".rstrip()]
    if self.count >= self.total:
      parts.append(f"done in {duration(seconds)}")
    elif rate > 0:
      parts.append(f"{rate:.3g}/s, {duration((self.total - self.count) / rate)} left")
    for name, value in self.fields.items():
      parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(parts)

  def _print(self, end: str) -> None:
    text = self.text()
    padding = " " * max(0, self.width - len(text)) if self.terminal else ""
    self.width = len(text)
    print(text + padding, end=end, file=self.stream, flush=True)
