# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.docs

.PHONY: demo test test-slow bench check docs format setup package tutorial clean

demo: $(STAMP)
	$(BIN)/bestattack demo

test: $(STAMP)
	$(BIN)/pytest -n auto --dist loadfile

test-slow: $(STAMP)
	$(BIN)/pytest --slow

bench: $(STAMP)
	$(BIN)/pytest tests/performance --slow --benchmark-enable -s

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Not --quiet: --strict counts the warnings that are shown.
docs: $(DOCS_STAMP)
	$(BIN)/mkdocs build --strict

# The wheel and the source distribution, into dist/, and what the wheel does by itself.
package: $(STAMP)
	$(BIN)/python .ci/package.py

# The tutorial with its outputs, as docs/ has it.
tutorial: $(STAMP)
	rm -rf docs/runs && $(BIN)/jupyter execute --inplace docs/tutorial.ipynb; rm -rf docs/runs

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(STAMP)

# Everything in one pip command under the constraints, so that nothing pulls another torch.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bestattack needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
