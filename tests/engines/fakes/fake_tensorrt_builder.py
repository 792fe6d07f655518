"""What a build of ours touches of TensorRT, and nothing else. A plan is the JSON of everything that was set.

Its INT8 calibrator lives in `ten/tensorrt.py`, since 11.x has none. A network's inputs come from the ONNX file.
"""

import json
from enum import IntEnum
from typing import Any

import onnx


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2


class IProgressMonitor:
    pass


class ProfilingVerbosity(IntEnum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 2


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class HardwareCompatibilityLevel(IntEnum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class LayerInformationFormat(IntEnum):
    ONELINE = 0
    JSON = 1


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class IBuilderConfig:
    profiling_verbosity: Any = None
    progress_monitor: Any = None
    builder_optimization_level: int | None = None
    hardware_compatibility_level: Any = None

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.pools: dict[str, int] = {}
        self.profile: dict[str, Any] = {}
        self.calibration_profile: dict[str, Any] | None = None
        self.timing_cache: TimingCache | None = None

    def set_flag(self, flag: IntEnum) -> None:
        self.flags.append(flag.name)

    def set_memory_pool_limit(self, pool: IntEnum, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: "Profile") -> int:
        self.profile = profile.shapes
        return 0

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        return None if content.startswith(b"garbage") else TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.timing_cache = cache
        return ignore_mismatch or not cache.content.startswith(b"other GPU")

    def get_timing_cache(self) -> TimingCache | None:
        return self.timing_cache


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = [list(shape) for shape in shapes]


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name = value.name
        self.shape = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.inputs: list[Tensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, log: ILogger) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        self.network.inputs = [Tensor(value) for value in onnx.load(path).graph.input]
        return True


class Builder:
    config = IBuilderConfig

    def __init__(self, log: Any) -> None:
        self.log = log

    def create_builder_config(self) -> IBuilderConfig:
        return self.config()

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Any) -> bytes | None:
        config.progress_monitor.phase_start("Building", None, 2)
        config.progress_monitor.step_complete("Building", 0)
        calibrator = getattr(config, "int8_calibrator", None)
        scales = calibrator.read_calibration_cache().decode() if calibrator else None
        if scales and "TRT-101300-" not in scales:
            calibrator.get_batch(["image"])
            return None
        made = {
            "flags": config.flags,
            "strongly_typed": bool(network.flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED),
            "verbosity": config.profiling_verbosity.name,
            "workspace": config.pools.get("WORKSPACE"),
            "level": config.builder_optimization_level,
            "hardware": config.hardware_compatibility_level and config.hardware_compatibility_level.name,
            "profile": config.profile,
            "calibration_profile": config.calibration_profile,
            "scales": scales,
        }
        return json.dumps(made).encode()


class Inspector:
    def __init__(self, listing: str) -> None:
        self.listing = listing

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        assert form is LayerInformationFormat.JSON
        return self.listing


class Engine:
    def __init__(self, listing: str) -> None:
        self.listing = listing

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self.listing)


class Runtime:
    listing = ""

    def __init__(self, log: ILogger) -> None:
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        compatible = "VERSION_COMPATIBLE" in json.loads(plan)["flags"]
        return Engine(self.listing) if self.engine_host_code_allowed >= compatible else None


def gemm(type_field: str) -> dict[str, Any]:
    """The layer of the product `product` in INT8; the releases tell a tensor's type in different fields."""

    def tensor(name: str, shape: list[int], type_: str) -> dict[str, Any]:
        return {"Name": name, "Dimensions": shape, type_field: type_}

    return {
        "Name": "product_myl0_1",
        "LayerType": "gemm",
        "Inputs": [tensor("x16.q", [-1, 64], "Int8")],
        "Constants": [tensor("w.q", [64, 128], "Int8")],
        "Outputs": [tensor("y16", [-1, 128], "Half")],
        "TacticName": "sm89_xmma_gemm_i8i8",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: product]\x1f[ONNX Layer: x16.dq]",
    }
