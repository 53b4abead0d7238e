# `make demo` and `make test` set up what they need: .venv for nst, .triton for the server.
PYTHON ?= python3
BIN := .venv/bin
# The stamps change when what they were made of changes.
VENV := .venv/.installed
TRITON := .triton/cpu/installed.txt

.PHONY: help demo test coverage lint docs venv readme pictures gallery models gpu-training clean

help:
	@echo "make demo      export the shipped styles, serve them, stylize with them, measure (into demo/)"
	@echo "make test      every test that needs no GPU; a GPU of this machine is hidden from them; from Python 3.12 on with coverage"
	@echo "make coverage  the same, and which lines they run, with any Python"
	@echo "make lint      ruff, mypy, import-linter, and the documentation built strictly"
	@echo "make docs      build the documentation site into site/; make docs SERVE=1 shows it at http://127.0.0.1:8010"
	@echo "make models    train the shipped styles again: make models STYLE=starry.jpg STYLES=paintings TEXTURES=folder PHOTOS=folder"
	@echo "make gpu-training PHOTOS=folder STYLES=folder  the same in ten minutes of a GPU; without one a rehearsal of two iterations"
	@echo "make pictures  make the images of README and docs"
	@echo "make gallery   run the commands of docs/guides/optimize.md: make gallery PAINTINGS=folder TEXTURES=folder"
	@echo "make readme    draw the tables and plots of README and docs from docs/benchmark/*.json"
	@echo "make clean     remove what the above made"

# With a GPU it takes that, and another environment for the server, which it sets up by itself.
demo: $(VENV)
	$(BIN)/python dev/demo.py

# Without a limit a run waits forever for the tests of a worker that has crashed.
TESTS = CUDA_VISIBLE_DEVICES= OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --max-worker-restart=0 --dist loadfile --no-loadscope-reorder

COVERAGE := --cov --cov-report=term:skip-covered
# Python 3.12 and later count lines for nothing, and so make test prints them; before, that is a quarter of the time.
CHEAP = $(shell $(BIN)/python -c 'import sys; print("$(COVERAGE)" if sys.version_info >= (3, 12) else "")')

test: $(VENV) $(TRITON)
	COVERAGE_CORE=sysmon $(TESTS) $(CHEAP)

# What other processes run is not in it.
coverage: $(VENV) $(TRITON)
	$(TESTS) $(COVERAGE)

lint: $(VENV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(MKDOCS) build --strict --quiet

# Material for MkDocs advertises its successor at each build otherwise.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: $(VENV)
	$(MKDOCS) $(if $(SERVE),serve --dev-addr 127.0.0.1:8010,build --strict)

TRAIN = $(BIN)/nst-train --photos "$(PHOTOS)"
OWN := composition-vii contrast-of-forms great-wave water-lilies

models: $(VENV)
	$(TRAIN) --style "$(STYLE)" -o runs/narrow.pth --width 0.5 --iterations 2400
	$(TRAIN) --style "$(STYLE)" -o runs/wide.pth --from runs/narrow.pth --width 1 --iterations 1500 --batch 2 --no-grow --learning-rate 5e-4
	$(TRAIN) --style "$(STYLE)" -o runs/longer.pth --from runs/wide.pth --iterations 4500 --no-grow --learning-rate 2e-3
	$(TRAIN) --style "$(STYLE)" -o runs/starry-night.pth --from runs/longer.pth --iterations 11000 --batch 12 --no-grow
	$(TRAIN) --style "$(STYLES)/udnie.jpg" -o runs/udnie-johnson.pth --from runs/longer.pth --iterations 1500 --batch 8 --no-grow
	$(TRAIN) --style "$(STYLE)" -o runs/taught.pth --arch fast --iterations 4000 --teacher runs/wide.pth
	$(TRAIN) --style "$(STYLE)" -o runs/begun.pth --from runs/taught.pth --iterations 3800 --batch 2 --no-grow --learning-rate 2e-3
	$(TRAIN) --style "$(STYLE)" -o runs/starry-night-fast.pth --from runs/begun.pth --iterations 5500 --no-grow
	$(TRAIN) --style "$(STYLE)" -o runs/steady-begun.pth --from runs/begun.pth --iterations 4500 --no-grow \
		--temporal-weight 150 --style-weight 3
	$(TRAIN) --style "$(STYLE)" -o runs/starry-night-steady.pth --from runs/steady-begun.pth --iterations 700 --no-grow \
		--temporal-weight 200 --style-weight 3.2 --learning-rate 2e-3
	for name in $(OWN); do $(TRAIN) --style "$(STYLES)/$$name.jpg" -o runs/$$name-fast.pth --from runs/begun.pth --no-grow || exit; done
	$(TRAIN) --style "$(STYLES)" -o runs/gallery-teacher.pth --from runs/narrow.pth --width 0.5 --iterations 3200 --learning-rate 1e-3
	$(TRAIN) --style "$(STYLES)" -o runs/gallery-taught.pth --arch fast --iterations 4000 --teacher runs/gallery-teacher.pth
	$(TRAIN) --style "$(STYLES)" -o runs/gallery-begun.pth --from runs/gallery-taught.pth --iterations 4000 --batch 10 --no-grow --learning-rate 2e-3
	$(TRAIN) --style "$(STYLES)" -o runs/gallery.pth --from runs/gallery-begun.pth --iterations 5000 --batch 5 --no-grow --learning-rate 4e-3
	for name in strawberries gravel; do \
		$(TRAIN) --style "$(TEXTURES)/$$name.jpg" -o runs/$$name.pth --arch ulyanov --texture --iterations 700 --crop 192 || exit; done

gpu-training: $(VENV)
	$(BIN)/python dev/gpu_training.py pack "$(PHOTOS)" "$(STYLES)"
	if command -v nvidia-smi > /dev/null; then $(BIN)/python dev/gpu_training.py train runs/gpu-training; \
	else $(BIN)/python dev/gpu_training.py rehearse runs/gpu-rehearsal; fi

pictures: $(VENV)
	$(BIN)/python dev/pictures.py

gallery: $(VENV)
	$(BIN)/python dev/gallery.py "$(PAINTINGS)" "$(TEXTURES)" $(NAMES)

# What a GPU was measured to do lies beside this machine's results, in a file with the card's name.
OF_CPU := frontier gatys perf-analyzer results serving-wide styles video
CARDS = $(filter-out $(OF_CPU:%=docs/benchmark/%.json),$(wildcard docs/benchmark/*.json))

RESULTS := docs/benchmark
RESULT_PAGES := $(patsubst %,benchmark/%.md,index speedup latency serving methods peers) \
	explanation/equal-loss.md explanation/methods.md guides/export.md guides/train.md guides/video.md
readme: $(VENV)
	$(BIN)/nst bench report $(RESULTS)/results.json -o $(RESULTS)
	$(BIN)/nst bench report $(foreach name,results serving-wide perf-analyzer frontier styles video,$(RESULTS)/$(name).json) $(CARDS) \
		$(foreach page,README.md $(addprefix docs/,$(RESULT_PAGES)),--readme $(page))
	$(BIN)/nst bench report $(RESULTS)/gatys.json $(CARDS) --readme docs/guides/optimize.md
	$(BIN)/nst bench capacity $(RESULTS)/results.json $(RESULTS)/serving-wide.json $(CARDS) --readme docs/benchmark/capacity.md

venv: $(VENV)

$(VENV): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nst needs Python 3.11 or later, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(TRITON): server/nst_server/installation/environment.py server/nst_server/installation/interpreter.py | $(VENV)
	$(BIN)/nst-serve --install-only --device cpu
	touch $@

clean:
	rm -rf .venv .triton demo results site model_repository/[!R]* .mypy_cache .ruff_cache .pytest_cache
