"""A command for tests of chains: `python -m tests.chain_step NAME FOLDER` notes that it ran, then ends as FOLDER/NAME.exit says."""

import os
import pathlib
import signal
import sys
import time

name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
with (folder / "ran").open("a") as out:
  out.write(name + "\n")
print(f"output of {name}: " + " ".join(os.environ.get(k, "-") for k in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "MALLOC_ARENA_MAX")))
wanted = folder / f"{name}.exit"
code = wanted.read_text() if wanted.exists() else "0"
if code == "wait":
  signal.signal(signal.SIGTERM, lambda *unused: sys.exit(75))
  (folder / "waiting").touch()
  time.sleep(60)
sys.exit(int(code))
