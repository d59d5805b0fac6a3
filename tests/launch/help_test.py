"""Help comes at once: no command needs a device library or a dataset library to describe itself."""

import json
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# what takes seconds to load
SLOW = ("jax", "tensorflow", "torch", "tensorflow_datasets")

# One process asks every command. A library whose entry is None cannot be imported, so that a
# command which tries says so; what it had loaded until then is thrown away with it.
ASK = """
import contextlib, importlib, io, json, sys
modules, slow = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(slow))
answers = {}
for name in modules:
  said = io.StringIO()
  try:
    with contextlib.redirect_stdout(said):
      importlib.import_module(name).main(["--help"])
  except SystemExit as ended:
    answers[name] = ended.code or ("" if "--help" in said.getvalue() else "no help")
  except ImportError as error:
    answers[name] = str(error)
print(json.dumps(answers))
"""


def test_the_help_of_every_command_imports_no_library_that_takes_seconds_to_load():
  commands = sorted(entry.partition(":")[0] for entry in SCRIPTS.values())
  process = subprocess.run(
    [sys.executable, "-c", ASK, json.dumps([commands, SLOW])],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  answers = json.loads(process.stdout)
  assert answers == dict.fromkeys(commands, "")
