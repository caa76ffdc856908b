# make install   a virtual environment in .venv with the pinned dependencies
# make demo      offline data -> world model -> better policy, followed in MLflow
# make test      lint, then all tests (also the examples in docstrings, README and docs)
# make docs      the documentation as HTML, with tutorials that are run, in docs/_build/html
# make wheel     builds dist/, checks it, and tries the wheel in an empty environment
# make wheel-offline   the same with the dependencies of .venv, where there is no network
# make release   the same as make wheel, if all files tell the same version
# make bench     the committed benchmarks
# make report    the results' page and figures from the rows of benchmarks/paper

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
BENCHMARKS = $(sort $(wildcard benchmarks/*.py))

# Test files run side by side.
PROCESSES ?= 2
# The networks are small: one thread a process is fastest, and leaves the other cores to others.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= $(OMP_NUM_THREADS)
export MLFLOW_DISABLE_TELEMETRY ?= true
export PYTHONUNBUFFERED ?= 1

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format docs wheel wheel-offline release bench report

help:
	@sed -n 's/^# make /make /p' Makefile

install: $(INSTALLED)

# Done again only when the dependencies change. A half-made environment is completed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "The pinned dependencies need Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): the first time this takes a few minutes and about 6 GB."
	@$(PIP) -e ".[dev]"
	@touch $@

# Every simulator and format, so that no test is skipped for want of one; tests also check the
# documentation, and its tutorials run on other simulators.
$(INSTALLED_TEST): $(INSTALLED)
	@$(PIP) -e ".[dev,test,docs]"
	@touch $@

demo: install
	@$(PY) examples/demo.py

test: $(INSTALLED_TEST) lint
	@$(PY) -m pytest -n $(PROCESSES) --dist loadfile

lint: install
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy --no-error-summary

format: install
	@$(PY) -m ruff check --quiet --fix .
	@$(PY) -m ruff format --quiet .

docs: $(INSTALLED_TEST)
	@$(PY) -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "Built docs/_build/html/index.html"

wheel: install
	@rm -rf dist build/wheel
	@PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(PY) -m build --outdir dist
	@$(PY) release/check_archives.py dist
	@$(PYTHON) -m venv build/wheel
	@echo "Installing the wheel into build/wheel: this takes a few minutes and about 6 GB."
	@build/wheel/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt dist/*.whl
	@cd build && wheel/bin/python ../release/smoke_test.py ../examples
	@rm -rf build/wheel

# An environment that has nothing but the wheel, and sees the packages of .venv behind it. Projects
# that .venv has in editable form are not among them.
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))
wheel-offline:
	@test -x $(PY) || { echo "There is no $(VENV): make install, where there is a network."; exit 1; }
	@rm -rf dist build/wheel
	@$(PY) -m build --no-isolation --outdir dist
	@$(PY) release/check_archives.py dist
	@$(PY) -m venv --without-pip build/wheel
	@$(PY) -m pip --python build/wheel/bin/python install -qq --no-index --no-deps dist/*.whl
	@$(PY) -c '$(PURELIB)' > "$$(build/wheel/bin/python -c '$(PURELIB)')/dependencies.pth"
	@cd build && wheel/bin/python ../release/smoke_test.py ../examples --shared
	@rm -rf build/wheel

release: install
	@$(PY) release/check_versions.py
	@$(MAKE) wheel

bench: install
	@test -n "$(BENCHMARKS)" || { echo "There is no script in benchmarks/."; exit 1; }
	@for script in $(BENCHMARKS); do echo "$$script"; $(PY) $$script || exit 1; done

report: install
	@$(PY) -m benchmarks.paper report
