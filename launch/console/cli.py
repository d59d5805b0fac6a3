"""What every command has in common: configuration files with overrides, readable errors, exit
codes.

Exit codes: 0 done; 2 bad configuration or input (never worth a retry); 75 stopped on request after
saving (start again); 1 anything else. A wrong configuration is reported before any device is
touched.
"""

import argparse
from collections.abc import Callable
import difflib
import math
import os
import pathlib
import re
import select
import sys
import traceback

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from sam3d_jax.errors import ConfigError, InputError, JobFailed, Preempted
from sam3d_jax.files import blame, handles

EXIT_BAD_INPUT = 2
EXIT_RETRY = 75  # EX_TEMPFAIL: whatever starts the job should start it again
CONFIGS = "configs"  # folder of the configurations, in a checkout and where this is installed
# what an element of a tuple is, by the type that the configuration file has there
ELEMENTS = {
  str: "texts",
  int: "whole numbers",
  float: "numbers",
  None: "texts or numbers",
}
ONE_TEXT = re.compile(r"[^,;()\[\]{}'\"\s]([^,;()\[\]{}'\"]*[^,;()\[\]{}'\"\s])?")
INSTALLED = str(pathlib.Path(__file__).parents[2])  # the folder that holds it


def run_command(
  run: Callable[[argparse.Namespace], int | None],
  *,
  description: str,
  flags: Callable[[argparse.ArgumentParser], None] | None = None,
  config: str = "required",
  argv: list[str] | None = None,
) -> int:
  """Parses the command line, runs `run(args)` and returns the exit code that the outcome calls for.

  config: "required" or "optional" adds `--config FILE[:variant]` and `--config.key=value`, found
  parsed in `args.config` (None when optional and not given); "none" adds neither.
  """
  argv = sys.argv[1:] if argv is None else argv
  takes_config = config != "none"

  # Help shows the first two paragraphs: what the command is for, and how it is called.
  purpose, *more = description.split("\n\n")
  parser = argparse.ArgumentParser(
    description=purpose,
    epilog="".join(more[:1]),
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  if takes_config:
    parser.add_argument(
      "--config",
      required=config == "required",
      metavar="FILE[:VARIANT]",
      help="configuration file; any key of it is set with --config.KEY=VALUE",
    )
  if flags is not None:
    flags(parser)

  # What argparse itself refuses ends with 2 too.
  try:
    overrides, others = [], argv
    if takes_config:
      overrides = [word for word in argv if word.startswith("--config.")]
      others = [word for word in argv if not word.startswith("--config.")]
    args = parser.parse_args(others)
    if overrides and args.config is None:
      raise ConfigError(f"{overrides[0]} needs --config FILE")
    if takes_config and args.config is not None:
      args.config = load_config(args.config, overrides)
    handles.raise_limit()
    code = run(args) or 0
    sys.stdout.flush()
    return code
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    return EXIT_BAD_INPUT
  except JobFailed as error:
    print(f"failed: {error}", file=sys.stderr)
    return 1
  except BrokenPipeError:
    # Whoever read the output has gone, as `| head` does. Of any other pipe this is a fault.
    if not is_output_closed():
      raise
    return 1
  except OSError as error:
    # What a disk or its owner says needs no traceback; all else is a fault of the program.
    if error.errno not in (*blame.PERMISSION, *blame.DISK):
      raise
    if error.errno in blame.PERMISSION:
      print(f"error: {error}: give the right to it, or another path", file=sys.stderr)
      return EXIT_BAD_INPUT
    print(f"failed: {error}", file=sys.stderr)
    return 1
  except (Preempted, KeyboardInterrupt) as stop:
    reason = "interrupted" if isinstance(stop, KeyboardInterrupt) else stop
    print(f"stopped: {reason}. Run the same command again to continue.", file=sys.stderr)
    return EXIT_RETRY


def is_output_closed() -> bool:
  """Whether nobody reads standard output any more; what is left to say then goes nowhere."""
  output = sys.stdout.fileno()
  poll = select.poll()
  poll.register(output, 0)  # errors are reported whatever is asked for
  if not poll.poll(0):
    return False
  # else the interpreter would try once more, and complain, on its way out
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, output)
  return True


def load_config(spec: str, overrides: list[str] = (), *, flag: str = "--config") -> ConfigDict:
  """The locked configuration of `file.py[:variant]` with `--config.key=value` overrides applied.

  flag: under which the file was given, for errors. Raises ConfigError naming the file, the key, the
  value and the nearest key.
  """
  # the file, here or where this is installed, and its variant
  given, _, _ = spec.partition(":")
  path = find_file(given)
  if not path.endswith(".py") or not os.path.isfile(path):
    raise ConfigError(f"{flag} {spec}: {nearest_file(path)}")
  spec = path + spec.removeprefix(given)

  # First without overrides, so that what is wrong is blamed on the file or on one of them.
  try:
    config = _parse(spec, [])
  except (absl_flags.Error, TypeError, ValueError) as error:
    *_, reason = str(error).strip().splitlines() or [type(error).__name__]
    raise ConfigError(f"{flag} {spec}: {reason}") from error
  # The file is a program of its own: whatever it raises is a mistake in it.
  except Exception as error:
    raise ConfigError(f"{flag} {spec}: {_mistake(error, path)}; correct the file") from error
  if not isinstance(config, ConfigDict):
    kind = type(config).__name__
    raise ConfigError(f"{flag} {spec}: its get_config gives {kind}, expected a ConfigDict")

  # Keys that do not exist, by name; then all of them at once, by type.
  taken = []
  for override in overrides:
    key, equals, value = override.removeprefix("--config.").partition("=")
    if not equals:
      raise ConfigError(f"--config.{key}: write it as --config.{key}=VALUE")
    if not _has(config, key):
      near = nearest_key(key, config)
      raise ConfigError(f"{path} has no key '{key}' (given value {value!r}){near}")
    # what has no value keeps having none
    if value != "None" or _get(config, key) is not None:
      taken.append(override)
  try:
    parsed = _parse(spec, taken)
  except (absl_flags.Error, TypeError, ValueError) as error:
    reason = _blame(spec, taken, config) or error
    raise ConfigError(f"{path}: {reason}") from error

  # What the types of the keys do not tell: numbers that are none, elements of tuples.
  for override in taken:
    key, _, value = override.removeprefix("--config.").partition("=")
    problem = _problem(key, _get(config, key), _get(parsed, key))
    if problem:
      raise ConfigError(f"{path}: {key} = {value!r}: {problem}")
  return parsed


def _mistake(error: Exception, path: str) -> str:
  """What went wrong in a configuration file, with its line where that is known."""
  lines = []
  if isinstance(error, SyntaxError):
    lines = [error.lineno]
  else:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
  where = f"line {lines[-1]}: " if lines and lines[-1] else ""
  return f"{where}{blame.said(error)}"


def find_file(path: str) -> str:
  """The file to read for `path`: a `configs/...` that is not here is the one that is installed."""
  if os.path.exists(path):
    return path
  installed = pathlib.Path(INSTALLED, path)
  top = pathlib.Path(path).parts[:1]
  if top == (CONFIGS,) and installed.is_file():
    return str(installed)
  return path


def _parse(spec: str, overrides: list[str]) -> ConfigDict:
  """The locked configuration; absl's errors are those of its flags, as they come."""
  argv = ["command", f"--config={spec}", *overrides]
  values = absl_flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=argv)
  values(argv)
  return values.config


def _blame(spec: str, overrides: list[str], config: ConfigDict) -> str | None:
  """The message for the first override whose value does not fit its key's type."""
  for override in overrides:
    try:
      _parse(spec, [override])
    except (absl_flags.Error, TypeError, ValueError):
      key, _, value = override.removeprefix("--config.").partition("=")
      section, _, name = key.rpartition(".")
      # a key without a value has a type too
      wanted = (_get(config, section) if section else config).get_type(name)
      if wanted is type(None):
        return (
          f"{key} = {value!r}: it is switched off and takes no value from the command line; set it "
          "in a configuration file"
        )
      return f"{key} = {value!r} is not of type {wanted.__name__}"
  return None


def _problem(key: str, default, given) -> str | None:
  """Why the value given for a key cannot be meant, with the remedy; None if it can.

  default: the value of the configuration file, whose elements say what a tuple is made of.
  """
  if _is_nan(given):
    return "give a number"
  if isinstance(given, str) and given == "None":
    return f"it is read as a text; for none write --config.{key}="
  if not isinstance(given, tuple):
    return None
  wanted = _element_type(default)
  for element in given:
    if _is_element(element, wanted):
      continue
    if isinstance(element, str) and wanted in (str, None):
      return (
        f"read as the one text {element!r}; write several as --config.{key}=\"('a','b')\", none as "
        f"--config.{key}=()"
      )
    said = ELEMENTS[wanted]
    example = repr(default or (1, 2)).replace(" ", "")
    return f'its element {element!r} is none of {said}; write it as --config.{key}="{example}"'
  return None


def _element_type(default: tuple) -> type | None:
  """What the elements of a tuple are: str, int, float; None where the default does not tell."""
  kinds = {type(element) for element in default}
  if kinds == {str}:
    return str
  if kinds and kinds <= {int, float}:
    return float if float in kinds else int
  return None


def _is_element(element, wanted: type | None) -> bool:
  """Whether a value can be meant as an element of this type; whole numbers are numbers too."""
  if isinstance(element, str):
    return wanted in (str, None) and bool(ONE_TEXT.fullmatch(element))
  if isinstance(element, bool) or not isinstance(element, int | float) or _is_nan(element):
    return False
  if wanted is int:
    return isinstance(element, int)
  return wanted in (float, None)


def _is_nan(value) -> bool:
  return isinstance(value, float) and math.isnan(value)


def _get(config, key: str):
  """The value or section of a dotted key. Raises what a part that is not there raises."""
  for part in key.split("."):
    config = config[part]
  return config


def _has(config, key: str) -> bool:
  try:
    _get(config, key)
  except (KeyError, TypeError, IndexError):
    return False
  return True


def all_keys(config: ConfigDict, prefix: str = "") -> list[str]:
  """Every key of a configuration, dotted, sections included."""
  keys = []
  for name, value in config.items():
    keys.append(prefix + name)
    if isinstance(value, ConfigDict):
      keys += all_keys(value, f"{prefix}{name}.")
  return keys


def nearest_key(key: str, config: ConfigDict) -> str:
  """'; the nearest key is ...', or '' if none is near."""
  keys = all_keys(config)
  # the right name in the wrong section comes before a name that is spelt alike
  _, _, name = key.rpartition(".")
  near = [known for known in keys if known.rpartition(".")[2] == name]
  if not near:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
  return f"; the nearest key is '{near[0]}'" if near else ""


def nearest_file(path: str) -> str:
  """Says that a configuration file does not exist and which existing one is nearest."""
  known = []
  for folder in (pathlib.Path(), pathlib.Path(INSTALLED)):
    for file in sorted((folder / CONFIGS).rglob("*.py")):
      if file.name != "__init__.py":
        known.append(str(file.relative_to(folder)))
  near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
  remedy = f"; the nearest is {near[0]}" if near else ""
  return f"no such configuration file ({path}){remedy}"
