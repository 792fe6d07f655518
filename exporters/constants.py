"""Which tensors of a graph are constant, and what they hold."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

MOVEMENT = {
    *("Constant", "Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    *("Slice", "Split", "Concat"),
}
"""Operators through which a weight stays constant; every compiler folds them."""


class Constants:
    """The constant tensors of a graph, computed when asked for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        # An initializer that is also an input is only a default: a caller may feed another value.
        inputs = {value.name for value in model.graph.input}
        self._initializers = {i.name: i for i in model.graph.initializer if i.name not in inputs}
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._opsets = {o.domain: o.version for o in model.opset_import}

    def has(self, tensor: str) -> bool:
        """Whether the tensor is an initializer or made of constants by data movement alone."""
        if tensor in self._initializers:
            return True
        maker = self._makers.get(tensor)
        return (
            maker is not None
            and not maker.domain
            and maker.op_type in MOVEMENT
            and all(self.has(name) for name in maker.input if name)
        )

    def value(self, tensor: str) -> NDArray[np.generic]:
        """The value of a constant tensor."""
        if tensor in self._initializers:
            return numpy_helper.to_array(self._initializers[tensor])
        maker = self._makers[tensor]
        feeds = {name: self.value(name) for name in maker.input if name}
        values = ReferenceEvaluator(maker, opsets=self._opsets).run(None, feeds)
        return np.asarray([*values][list(maker.output).index(tensor)])
