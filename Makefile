# squib: `make demo` boots a VM on a bare Debian machine, `make test` checks everything.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SUITES ?= .venv-suites
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PACKAGES := python3-venv
TEST_PACKAGES := tmux
NESTED_PACKAGES := strace
ORIGIN_TESTS = $(shell grep -l shared_vm tests/vm/test_*.py)
SOURCES := src tests bench hatch_build.py
AGENT_SOURCES := $(shell find agent -name '*.go' -o -name go.mod)

define install
missing=$$(for package in $(1); do dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
  if [ -n "$$missing" ]; then $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y --no-install-recommends $$missing; fi
endef

.PHONY: help demo test lint fmt unit agent-test vm-test test-origins test-suites test-nested bench setup clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

demo: setup  ## Install what is missing, boot a VM and run Python in it
	@$(BIN)/python -m squib doctor --fix
	@$(BIN)/python bench/demo.py

test: lint unit agent-test vm-test  ## Lint, unit tests, the agent's tests, tests on real VMs

lint: setup  ## ruff, mypy, import-linter, go vet
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/go.py vet ./...
	$(BIN)/python tests/go.py -C ../bench/guest vet ./...

fmt: setup  ## Format the code
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Tests start many Python processes. Without bytecode, each of them compiles all that it imports.
unit: export PYTHONDONTWRITEBYTECODE =
unit: export PYTHONPYCACHEPREFIX = $(CURDIR)/$(VENV)/pycache
unit: setup  ## Unit tests: no root, no VM
	$(BIN)/pytest tests/unit tests/contract -m "not slow and not vm" -n 2 --dist worksteal

agent-test: setup  ## The agent's own tests
	$(BIN)/python tests/go.py test ./...

vm-test: setup  ## Tests on real VMs
	@$(call install,$(TEST_PACKAGES))
	$(BIN)/python -m squib doctor --fix
	$(BIN)/pytest tests/unit -m slow -n 3 --dist worksteal
	$(BIN)/pytest tests/contract -m vm
	$(BIN)/pytest tests/vm -m "not alone" -n 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest tests/vm -m alone

test-origins: setup  ## The same tests on VMs that booted, and that go on from a saved state (optional)
	for origin in boot clone suspend snapshot fork; do \
	  SQUIB_TEST_ORIGIN=$$origin $(BIN)/pytest $(ORIGIN_TESTS) -n 2 --dist loadfile || exit 1; done

test-suites: setup  ## Two public suites for sandboxes, on real VMs (optional)
	@[ -x $(SUITES)/bin/python ] || $(PYTHON) -m venv $(SUITES)
	@if ! { $(SUITES)/bin/pip install --quiet --disable-pip-version-check --upgrade pip && \
	  $(SUITES)/bin/pip install --quiet --disable-pip-version-check --editable . --group suites; }; then \
	  echo "skipped: the suites' packages could not be installed; is PyPI reachable?"; \
	else \
	  $(BIN)/python -m squib doctor --fix && $(SUITES)/bin/pytest tests/suites -o filterwarnings=default; \
	fi

# SQUIB_TEST_FIRECRACKER=DIR names a directory with firecracker and jailer; without it that half is skipped.
test-nested: setup  ## Tests on QEMU and Firecracker with KVM, in a nested VM if need be (optional)
	@$(call install,$(NESTED_PACKAGES))
	$(BIN)/python -m squib doctor --fix
	$(BIN)/python -m tests.nested

bench: setup  ## The figures that the README quotes
	$(BIN)/python -m bench

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml hatch_build.py $(AGENT_SOURCES)
	@$(call install,$(PACKAGES))
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

clean:  ## Remove the virtual environment and what was built in the tree
	rm -rf $(VENV) $(SUITES) src/squib/guest/bin dist
