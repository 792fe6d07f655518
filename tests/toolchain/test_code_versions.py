"""What an artifact's reuse depends on, against what the code imports."""

import grimp

from toolchain.requests import METHODS
from toolchain.stages import SYNTHESIS


def test_images_are_made_anew_when_a_module_changes_that_any_method_imports():
    graph = grimp.build_graph("calib")
    methods = {"calib.fdda", "calib.noise", "calib.patch_similarity"}
    assert len(methods) == len(METHODS)
    used = methods.union(*map(graph.find_upstream_modules, methods))
    assert used <= {path.removesuffix(".py").replace("/", ".") for path in SYNTHESIS}
