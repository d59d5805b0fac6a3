# The two set-up commands of README.md. Each makes its own virtual environment from the requirements files and may be run first.
PYTHON ?= python3
WORK ?= quickstart_run
PYTEST_ARGS ?= -n 2

.PHONY: quickstart test lint clean

quickstart: .venv/ready
	@.venv/bin/python -m launch.quickstart --workdir "$(WORK)"

test: .venv-test/ready
	@.venv-test/bin/ruff check .
	@.venv-test/bin/python -m pytest $(PYTEST_ARGS) -m "not multidevice"
	@SAM3D_TEST_DEVICES=8 timeout 3000 .venv-test/bin/python -m pytest -m multidevice

lint: .venv-test/ready
	@.venv-test/bin/ruff check .

clean:
	rm -rf .venv .venv-test .pytest_cache .ruff_cache

# `ready` is written last: an interrupted installation is simply continued by the next run.
.venv/ready: requirements.txt
	@$(MAKE) --no-print-directory environment FOLDER=.venv REQUIREMENTS=requirements.txt

.venv-test/ready: requirements.txt requirements-torch.txt requirements-dev.txt
	@$(MAKE) --no-print-directory environment FOLDER=.venv-test REQUIREMENTS=requirements-dev.txt

.PHONY: environment
environment:
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2]; \
	  ok or print("error: $(PYTHON) is Python %d.%d, this needs 3.11 or newer: run make PYTHON=/path/to/python3.12 ..." % sys.version_info[:2]); \
	  sys.exit(0 if ok else 2)'
	@echo "making $(FOLDER) from $(REQUIREMENTS) (a few minutes) ..."
	@test -x $(FOLDER)/bin/pip || $(PYTHON) -m venv $(FOLDER)
	@$(FOLDER)/bin/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS) || { \
	  echo "error: installing $(REQUIREMENTS) failed (see above); run the same command again, what was downloaded is kept"; exit 1; }
	@touch $(FOLDER)/ready
