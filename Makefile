# The two set-up commands of README.md. Each makes its own virtual environment from the requirements files and may be run first.
PYTHON ?= python3
WORK ?= quickstart_run
# A file goes to a worker as a whole, for what its tests share; the longest are begun first (tests/conftest.py).
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-all lint format lock clean

quickstart: .venv/ready
	@.venv/bin/python -m launch.quickstart --workdir "$(WORK)"

test: lint
	@.venv-test/bin/python -m pytest $(PYTEST_ARGS) -m "not multidevice and not slow"
	@SAM3D_TEST_DEVICES=8 timeout 3000 .venv-test/bin/python -m pytest -m "multidevice and not slow"

# With what takes too long for every change; docs/operations.md records the last full run.
test-all: lint
	@.venv-test/bin/python -m pytest $(PYTEST_ARGS) -m "not multidevice"
	@SAM3D_TEST_DEVICES=8 .venv-test/bin/python -m pytest -m multidevice

lint: .venv-test/ready
	@.venv-test/bin/ruff check .
	@.venv-test/bin/ruff format --quiet --check . || { .venv-test/bin/ruff format --check .; exit 1; }

format: .venv-test/ready
	@.venv-test/bin/ruff format .

# The tested versions: those of the environment of `make test`, run after its tests have passed. The comment at the top of the file stays;
# builds of PyTorch for one kind of device and the libraries of CUDA are left to pip.
lock: .venv-test/ready
	@{ grep '^#' requirements-lock.txt; .venv-test/bin/python -m pip freeze --disable-pip-version-check \
	  | grep -v -E '^(nvidia|cuda|triton)' | sed -E 's/\+[a-z0-9.]+$$//'; } > requirements-lock.tmp
	@mv requirements-lock.tmp requirements-lock.txt

clean:
	rm -rf .venv .venv-test .pytest_cache .ruff_cache

# `ready` is written last: an interrupted installation is simply continued by the next run.
.venv/ready: requirements.txt
	@$(MAKE) --no-print-directory environment FOLDER=.venv REQUIREMENTS=requirements.txt

.venv-test/ready: requirements.txt requirements-torch.txt requirements-against.txt requirements-heif.txt requirements-engine.txt requirements-dev.txt
	@$(MAKE) --no-print-directory environment FOLDER=.venv-test REQUIREMENTS=requirements-dev.txt

.PHONY: environment
environment:
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2]; \
	  ok or print("error: $(PYTHON) is Python %d.%d, this needs 3.11 or newer: run make PYTHON=/path/to/python3.12 ..." % sys.version_info[:2]); \
	  sys.exit(0 if ok else 2)'
	@echo "making $(FOLDER) from $(REQUIREMENTS) (a few minutes) ..."
	@test -x $(FOLDER)/bin/pip || $(PYTHON) -m venv $(FOLDER)
	@$(FOLDER)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r $(REQUIREMENTS) || { \
	  echo "error: installing $(REQUIREMENTS) failed (see above); run the same command again, what was downloaded is kept"; exit 1; }
	@touch $(FOLDER)/ready
