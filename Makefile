# make setup   the environment in .venv, with everything
# make demo    learn a person with the plain loss and with Masked LDM; look at runs/demo/
# make test    lint, types and tests
# make coverage   the same, with the lines that no test runs; it takes a fifth longer
# make docs   the documentation as a site, in site/
# make gpu-check   what only a GPU can show: a table, and runs/gpu-check.json

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: setup demo test coverage docs gpu-check lint style types pytest clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/mldm weights fetch vgg16 alexnet dlib_resnet mtcnn faceres mediapipe_palm mediapipe_hand mediapipe_person \
		mediapipe_pose mediapipe_selfie || echo "some weights are not here: what needs them is skipped"
	touch .venv/ready

demo: setup
	$(BIN)/python -m mldm_plugin.demo

lint: style types

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# A file's tests share networks and runs, so they stay in one process. Files go in the order of their names: xdist's own
# order, the fewest tests last, would leave the longest files for the end. More threads would only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: style
	$(MAKE) --no-print-directory -j 2 types pytest  # mypy in the time that tests wait for their processes

pytest: setup
	$(PYTEST)

coverage: lint
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

docs: setup
	$(BIN)/mkdocs build --strict --quiet

gpu-check: setup
	$(BIN)/python -m pytest tests/gpu

clean:
	rm -rf .venv build dist runs site *.egg-info
