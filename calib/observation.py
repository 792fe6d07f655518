"""Observation: what flows into named modules of a network while it runs, by hooks that never stay behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from toolchain.errors import ModelError


@dataclass(frozen=True)
class View:
    """What to look at in a network.

    Attributes:
        layers: names of modules, in the order they run; their first input is looked at.
        positions: name of a layer and its input -> vectors (B, N, D), one for each position in each image; raises
            `ModelError` for an input that has none.
    """

    layers: tuple[str, ...]
    positions: Callable[[str, Tensor], Tensor]


NOTHING = View((), lambda layer, inputs: inputs)
"""A view of no layer."""


class Observation:
    """What reached the observed modules in the last forward pass."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._seen: dict[str, Tensor] = {}

    def record(self, layer: str, inputs: Tensor) -> None:
        """Keep one module's input.

        Raises:
            ModelError: the input is not what the view looks at, or the module ran twice in one pass.
        """
        if layer in self._seen:
            raise ModelError(f"module '{layer}' runs more than once per image: name a module that runs once.")
        self._seen[layer] = self._view.positions(layer, inputs)

    def take(self) -> list[Tensor]:
        """Vectors (B, N, D) of each layer, in the order of the view; the observation is empty afterwards.

        Raises:
            ModelError: a layer did not run.
        """
        missing = [layer for layer in self._view.layers if layer not in self._seen]
        if missing:
            raise ModelError(f"modules {', '.join(missing)} did not run: name modules that every image passes.")
        seen = [self._seen[layer] for layer in self._view.layers]
        self._seen.clear()
        return seen


@contextmanager
def observing(model: nn.Module, view: View) -> Iterator[Observation]:
    """Watch the inputs of some submodules; the model is left without hooks, whatever happens.

    Raises:
        ModelError: no such submodule.
    """
    modules = dict(model.named_modules())
    unknown = [layer for layer in view.layers if layer not in modules]
    if unknown:
        raise ModelError(f"the model has no module {', '.join(unknown)}: give names that `named_modules()` lists.")
    observation = Observation(view)
    handles = []

    def watch(layer: str) -> Any:
        return lambda module, inputs: observation.record(layer, inputs[0])

    try:
        for layer in view.layers:
            handles.append(modules[layer].register_forward_pre_hook(watch(layer)))
        yield observation
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with no parameter asking for a gradient; both are put back afterwards.

    Gradients still reach the *images*: that is how a generator learns from a teacher that does not change.
    """
    modes = {module: module.training for module in model.modules()}
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in asking:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in asking:
            parameter.requires_grad_(True)
