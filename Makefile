# Two commands matter: `make serve` and `make test`. Each sets up what it needs, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: serve test check bench load peers clean

serve: $(VENV)/.serve
	$(BIN)/cellstate serve $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/cellstate bench engine --chunks --profile $(ENGINE_ARGS)
	$(BIN)/python -m loadtests.door $(ARGS)

load: $(VENV)/.dev
	$(BIN)/python -m loadtests $(or $(ARGS),all)

# A rival that can't be set up is reported as absent.
peers: $(VENV)/.dev
	-$(BIN)/python -m loadtests.peers setup
	$(BIN)/python -m loadtests.peers $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# torch first and by its exact version: resolved together with the rest, pip may pick another build.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	touch $@

$(VENV)/.serve: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(PIP) -e '.[dev]'
	touch $@
