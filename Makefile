# Two commands are all that is needed: `make sample` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
# Robots, or one class of the CIFAR-10 model: make sample CLASS=cat
CLASS ?=
MODEL ?= $(if $(CLASS),cifar10,robots64)
COUNT ?= $(if $(CLASS),16,24)
SEED ?= 0
JOBS ?= 2
# e.g. PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu' for torch without CUDA
PIP_FLAGS ?=

BIN := $(VENV)/bin
IMAGE = samples/$(or $(CLASS),$(MODEL)).png
# One thread a process. The tests of a file stay together: they share what is slow to make.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --durations=10
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS)

.PHONY: sample test test-all test-shapes test-web lint docs bench soak clean

sample: $(VENV)/.installed
	@$(BIN)/ggm-image sample --model "$(MODEL)" $(if $(CLASS),--class "$(CLASS)") -n $(COUNT) --seed $(SEED) --out "$(IMAGE)"
	@echo "$(CURDIR)/$(IMAGE)"

test: $(VENV)/.with-test
	$(PYTEST) -m "not slow"

# And what takes minutes: killed commands, the corpus of hostile inputs, several processes, compilers, the wheel.
test-all: test test-shapes
	$(PYTEST) -m slow

# Tests of the rooms with tensors while jaxtyping and beartype check every shape in a signature: twice the time.
SHAPED = test_shapes.py test_glauber.py test_schedule.py test_objective.py sampler network pipelines tokenizers training metrics \
	image data plugins
test-shapes: $(VENV)/.with-test
	SHAPES=1 $(PYTEST) -m "not slow" $(addprefix tests/,$(SHAPED))

# The page of `ggm-image demo`, in Chromium where it is installed. Gradio is too large for every run of the tests.
test-web: $(VENV)/.with-test $(VENV)/.with-browser
	$(PYTEST) tests/web

lint: $(VENV)/.with-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.with-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "$(CURDIR)/site/index.html"

soak: $(VENV)/.with-test
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.faults.soak --kills 50
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.faults.ranks --kills 50
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.faults.corpus

# Those that need no images; tools/benchmarks/bench_encode*.py say what they need.
bench: $(VENV)/.installed
	@set -e; for name in sample train memory inpaint; do echo "== $$name"; $(BIN)/python tools/benchmarks/bench_$$name.py; done

clean:
	rm -rf $(VENV) build dist samples site .pytest_cache .mypy_cache .ruff_cache

# Stamps: a set-up is done again only when pyproject.toml has changed.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or newer is needed (`$(PYTHON) --version 2>&1`); run make PYTHON=python3.12" >&2; exit 2; }
	@echo "setting up $(VENV): a few minutes, once"
	@$(PYTHON) -m venv "$(VENV)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.with-%: $(VENV)/.installed
	@$(PIP_INSTALL) --editable '.[$*]'
	@touch $@
