# Every target works in a fresh clone: it makes the environment it needs first.

PYTHON3 ?= python3
# The release that is tested. The package itself accepts newer ones.
TORCH ?= torch==2.13.0
BENCH_ARGS ?=
FUZZ_ARGS ?=
# In two processes, each file in one, whose fixtures are made once; empty, it is one, as a debugger needs it.
TEST_ARGS ?= --numprocesses 2 --dist loadfile

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
BARE := .venv-nonumpy
DIGITS := recipes/digits
RUN := $(DIGITS)/run
SWATOOL := $(VENV)/bin/swatool
RECALIBRATE = $(SWATOOL) recalibrate-bn --model $(DIGITS)/model.py:build --data $(RUN)/train.npz:x --overwrite

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-without-numpy lint check bench bench-reliability fuzz fuzz-guided format clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-20s %s\n' "$$name" "$$text"; \
	done

demo: $(READY) $(RUN)/.trained $(RUN)/train.npz ## Train a little, average, recalibrate and compare
	$(SWATOOL) average $(RUN)/ckpt-*.pt -o $(RUN)/swa.safetensors --overwrite
	$(SWATOOL) average $(RUN)/ckpt-*.pt --method ema --decay 0.8 -o $(RUN)/ema.safetensors --overwrite
	$(RECALIBRATE) $(RUN)/swa.safetensors -o $(RUN)/swa-bn.safetensors
	$(RECALIBRATE) $(RUN)/swa.safetensors -o $(RUN)/swa-bn-exact.safetensors --mode exact
	$(RECALIBRATE) $(RUN)/ema.safetensors -o $(RUN)/ema-bn.safetensors -q
	$(PYTHON) $(DIGITS)/compare.py $(RUN) \
		"SWA, BatchNorm statistics averaged=$(RUN)/swa.safetensors" \
		"SWA, recalibrated (batch)=$(RUN)/swa-bn.safetensors" \
		"SWA, recalibrated (exact)=$(RUN)/swa-bn-exact.safetensors" \
		"EMA (decay 0.8), averaged=$(RUN)/ema.safetensors" \
		"EMA (decay 0.8), recalibrated (batch)=$(RUN)/ema-bn.safetensors"
	$(SWATOOL) run $(DIGITS)/swa.yaml --set run.overwrite=true

test: $(READY) ## Run the tests; TEST_ARGS goes to pytest
	$(PYTHON) -m pytest $(TEST_ARGS)

test-without-numpy: $(BARE)/.ready ## Run every command, and what reads data, where NumPy is not installed
	$(BARE)/bin/python -m pytest $(TEST_ARGS) tests/averaging tests/cli tests/data tests/models tests/test_layers.py

lint: $(READY) ## Check format, style and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

check: lint test ## Everything a change must pass on one environment: lint, then the tests

bench: $(READY) ## Measure speed and memory; BENCH_ARGS=--short takes seconds
	for part in run batchnorm swa_utils formats inspect_diff large_plan sweep; do \
		$(PYTHON) tests/bench/$$part.py $(BENCH_ARGS) || exit 1; \
	done

bench-reliability: $(READY) ## Try the promises about hostile files, faults, signals and races; --short takes minutes
	PYTHONPATH=tests $(PYTHON) tests/bench/reliability.py $(BENCH_ARGS)

fuzz: $(READY) ## Read damaged files of every format; FUZZ_COUNT=200000 of each takes an hour
	PYTHONPATH=tests $(PYTHON) -m hostile.fuzz $(FUZZ_ARGS)

fuzz-guided: $(READY) ## The same, but damage that reaches new code is damaged further; FUZZ_ARGS='--seconds 600'
	$(PYTHON) -m pip install --quiet --editable ".[fuzz]"
	PYTHONPATH=tests $(PYTHON) -m hostile.guided $(FUZZ_ARGS)

format: $(READY) ## Format the code and fix what ruff can fix
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean: ## Remove the environments, caches and the demo's run
	rm -rf $(VENV) $(BARE) $(RUN) build swatool.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find swatool tests recipes -name __pycache__ -type d -prune -exec rm -rf {} +

# The pinned torch goes first, so that resolving the package does not pick another one.
$(READY): pyproject.toml Makefile
	$(PYTHON3) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet "$(TORCH)"
	$(PYTHON) -m pip install --quiet --editable ".[dev]"
	touch $@

# torch does not need NumPy, and neither does swatool, whose source does not name it. Its commands are tested
# without it all the same, as torch may need it behind a function.
$(BARE)/.ready: pyproject.toml Makefile
	$(PYTHON3) -m venv $(BARE)
	$(BARE)/bin/python -m pip install --quiet "$(TORCH)"
	$(BARE)/bin/python -m pip install --quiet --editable ".[test]"
	$(BARE)/bin/python -c "import importlib.util as u; raise SystemExit(u.find_spec('numpy') and 'NumPy is here')"
	touch $@

# Old checkpoints must not be averaged with new ones, so training starts with an empty folder.
$(RUN)/.trained: $(addprefix $(DIGITS)/,train.py model.py data.py evaluation.py) | $(READY)
	rm -rf $(RUN)
	$(PYTHON) $(DIGITS)/train.py $(RUN)
	touch $@

$(RUN)/train.npz: $(DIGITS)/data.py $(RUN)/.trained
	$(PYTHON) $(DIGITS)/data.py $@
