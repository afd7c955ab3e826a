# One command each: `make run` shows it working, `make test` checks it. Both set up .venv themselves.
#
#   PYTHON=python3.12    the interpreter that .venv is made with (3.11 or later)
#   VENV=/path           a virtual environment elsewhere
#   JOBS=2               test processes at a time
#   ARGS="-k plan -x"    more arguments for the program that a target runs

PYTHON ?= python3
LOCK_PYTHON ?= python3.11
VENV ?= .venv
JOBS ?= 2
ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
LOCK := dist/lock
LOCK_PIP := $(LOCK)/bin/python -m pip --disable-pip-version-check
RUN_STAMP := $(VENV)/.stamp-run
TEST_STAMP := $(VENV)/.stamp-test

# Plans are made on CPU devices and by libtpu's compiler, which needs no TPU: don't look for one,
# and let several processes load it.
export JAX_PLATFORMS ?= cpu
export TPU_SKIP_MDS_QUERY ?= 1
export ALLOW_MULTIPLE_LIBTPU_LOAD ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint format bench bench-collectives bench-games bench-malloc bench-memory bench-offsets bench-passes bench-planner bench-published lock bazel-test clean distclean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN_STAMP)  ## the whole path in minutes: plan, train, checkpoint, resume on another mesh
	@$(PY) -m experiments.quickstart $(ARGS)

test: lint  ## lint, then every test
	$(PY) -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

lint: $(TEST_STAMP)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(TEST_STAMP)  ## let ruff put the sources in form
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

bench: $(TEST_STAMP)  ## the measurements that the documents quote
	$(PY) -m benchmarks.planning $(ARGS)
	$(PY) -m benchmarks.layouts

bench-malloc: $(TEST_STAMP)  ## mallocGame against its baselines on TPU programs (hours; results are cached)
	$(PY) -m benchmarks.malloc $(ARGS)

bench-memory: $(TEST_STAMP)  ## estimated memory beside what the real TPU compiler needs
	$(PY) -m benchmarks.memory $(ARGS)

bench-collectives: $(TEST_STAMP)  ## collectives that plans predict, beside compiled ones
	$(PY) -m benchmarks.collectives $(ARGS)

bench-games: $(TEST_STAMP)  ## moves a second of the memory planner's games
	$(PY) -m benchmarks.game_speed $(ARGS)

bench-offsets: $(TEST_STAMP)  ## MiniMalloc's instances, packed and validated, against its C++ solver
	$(PY) -m benchmarks.offsets $(ARGS)

bench-passes: $(TEST_STAMP)  ## compiled programs with each pass and without (hours; results are cached)
	$(PY) -m benchmarks.stacking
	$(PY) -m benchmarks.remat
	$(PY) -m benchmarks.offload
	$(PY) -m benchmarks.pipeline
	$(PY) -m benchmarks.sequence

bench-planner: $(TEST_STAMP)  ## the planner against rule sets and experts, 18 cells (hours; results are kept)
	$(PY) -m benchmarks.planner $(ARGS)
	$(PY) -m benchmarks.planner_by_hand

bench-published: $(TEST_STAMP)  ## simulated step times beside throughput published for real TPUs
	$(PY) -m benchmarks.published $(ARGS)

# Made with the oldest Python supported: what installs there has builds for the later ones, while
# the newest releases of some packages have none for it. Pins stay as they are unless UPGRADE=1.
lock:  ## pin what pyproject.toml asks for (UPGRADE=1: at the newest releases)
	@$(call check_python,$(LOCK_PYTHON))
	@rm -rf $(LOCK) && $(LOCK_PYTHON) -m venv $(LOCK)
	@mkdir $(LOCK)/source && cp pyproject.toml README.md LICENSE $(LOCK)/source
	@touch requirements.txt requirements-test.txt
	@cat requirements.txt requirements-test.txt | grep -F $(if $(UPGRADE),none,==) >$(LOCK)/pins || true
	@echo "Resolving what running needs"
	@$(LOCK_PIP) install -qq -c $(LOCK)/pins './$(LOCK)/source[experiments]'
	@{ echo '# Made by `make lock` from pyproject.toml: what `make run` installs.'; \
	  $(LOCK_PIP) freeze --exclude autoshard; } >$(LOCK)/run.txt
	@echo "Resolving what testing needs"
	@$(LOCK_PIP) install -qq -c $(LOCK)/pins './$(LOCK)/source[test]'
	@{ echo '# Made by `make lock` from pyproject.toml: what `make test` adds.'; \
	  echo '-r requirements.txt'; \
	  $(LOCK_PIP) freeze --all --exclude pip --exclude autoshard | grep -vxFf $(LOCK)/run.txt; \
	} >$(LOCK)/test.txt
	@mv $(LOCK)/run.txt requirements.txt && mv $(LOCK)/test.txt requirements-test.txt
	@rm -rf $(LOCK)
	@wc -l requirements.txt requirements-test.txt

bazel-test: $(TEST_STAMP)  ## build and test with Bazel, offline, with the packages of .venv
	@command -v bazel >/dev/null || { \
	  echo "bazel is missing. On Debian: apt-get update && apt-get install bazel-bootstrap" >&2; \
	  exit 1; }
	bazel test //... --local_test_jobs=$(JOBS) \
	  --test_env=PATH="$(abspath $(VENV))/bin:/usr/bin:/bin" $(ARGS)

clean:  ## remove caches and build outputs; .venv and runs/ stay
	rm -rf build/ dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv, too
	rm -rf $(VENV)

# $(call check_python,INTERPRETER)
define check_python
$(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "autoshard needs Python 3.11 or later, and '$(1)' is" \
    "$$($(1) --version 2>&1 | head -n 1). Name another: make PYTHON=python3.12 ..." >&2; \
  exit 1; }
endef

$(PY):
	@$(call check_python,$(PYTHON))
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): requirements.txt | $(PY)
	@echo "Installing requirements.txt into $(VENV)"
	@$(PIP) install -r requirements.txt
	@touch $@

$(TEST_STAMP): requirements-test.txt $(RUN_STAMP)
	@echo "Installing requirements-test.txt into $(VENV): test tools, and libtpu (200 MB to fetch)"
	@$(PIP) install -r requirements-test.txt
	@touch $@
