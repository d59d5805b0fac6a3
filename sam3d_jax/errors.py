"""Errors that carry a meaning for whoever started the job.

`launch.console.cli` turns each into its exit code.
"""


class InputError(ValueError):
  """The configuration or an input is wrong: retrying cannot help (exit code 2).

  The message names the file or key, the value and the fix.
  """


class InputNote(UserWarning):
  """An input is used, in a way that who gave it should know of. Commands print it as a note."""


class ConfigError(InputError):
  """A configuration key or value is wrong."""


class DeniedError(InputError):
  """A file or folder may not be read by whoever started the job."""


class AwayError(InputError):
  """Data that are named are not there: a wrong name or, for a run that has read them before, a disk
  that is not mounted.
  """


class Preempted(Exception):
  """The job was told to stop, has saved, and should be started again (exit code 75)."""


class JobFailed(RuntimeError):
  """The job could not finish for a reason that its message explains in full; no traceback is needed
  (exit code 1).
  """


class Refused(Exception):
  """An input of many that cannot be used: a reason that programs count and a detail for people.

  Whoever goes through the inputs catches it, notes it and goes on; it ends no command.
  """

  def __init__(self, reason: str, detail: str):
    super().__init__(f"{reason}: {detail}")
    self.reason, self.detail = reason, detail

  # exceptions with two arguments do not survive pickling between processes otherwise
  def __reduce__(self):
    return type(self), (self.reason, self.detail)
