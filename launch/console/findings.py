"""Several inputs of a command, each looked at although another one is missing or wrong."""

from collections.abc import Iterator
import contextlib

from sam3d_jax.errors import InputError


class Findings:
  """What is wrong with the inputs of a command, told all at once.

  found = Findings()
  with found.looking("--data"):
    source = records.open_split(data, split)
  with found.looking():
    weights.check(config)
  found.tell()  # from here on both are there
  """

  def __init__(self):
    self.wrong: list[str] = []

  @contextlib.contextmanager
  def looking(self, flag: str = "") -> Iterator[None]:
    """Keeps the InputError that is raised within. flag: that gave the input, for the message."""
    try:
      yield
    except InputError as error:
      said = str(error)
      self.wrong.append(said if flag in said else f"{flag} {said}")

  def tell(self) -> None:
    """Raises InputError with everything that was found, if anything was."""
    if not self.wrong:
      return
    if len(self.wrong) == 1:
      raise InputError(self.wrong[0])
    lines = "\n  ".join(self.wrong)
    raise InputError(f"{len(self.wrong)} inputs are missing or wrong:\n  {lines}")
