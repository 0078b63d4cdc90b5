# make demo: the main job, end to end. make test: all tests. make bench: how fast it is, in about a
# quarter of an hour. All install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/pip install --disable-pip-version-check

.PHONY: demo test check format bench clean

demo: $(STAMP)
	@$(BIN)/mayfly demo --out out

bench: $(STAMP)
	@$(BIN)/mayfly bench --out out/bench

test: check
	@command -v chromium chromium-browser >/dev/null || \
		echo "== the page's tests will be skipped: they need a browser, apt-get install chromium"
	@echo "== tests"
	@$(BIN)/pytest -n 2 --dist loadfile

check: $(STAMP)
	@echo "== ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# torch comes first and by its exact version, so that no newer build is fetched on the way
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "== virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "== installing torch and torchvision (the largest part, minutes on a slow line)"
	@$(PIP) $$(grep -E '^(torch|torchvision)==' constraints.txt)
	@echo "== installing Mayfly and its tools"
	@$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
