"""A command for tests of chains.

`python -m tests.support.chain_step NAME FOLDER` notes that it ran, then ends as FOLDER/NAME.exit
says.
"""

import os
import pathlib
import signal
import sys
import time

name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
with (folder / "ran").open("a") as out:
  out.write(name + "\n")
variables = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "MALLOC_ARENA_MAX")
values = [os.environ.get(variable, "-") for variable in variables]
print(f"output of {name}: {' '.join(values)}")

wanted = folder / f"{name}.exit"
code = wanted.read_text() if wanted.exists() else "0"
if code == "wait":
  # ends when it is told to stop
  signal.signal(signal.SIGTERM, lambda *unused: sys.exit(75))
  (folder / "waiting").touch()
  time.sleep(60)
  code = 0
elif code == "ignore":
  # ends by itself, as one does that was at its end when told to stop
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  (folder / "waiting").touch()
  time.sleep(1)
  code = 0
sys.exit(int(code))
