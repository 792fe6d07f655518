"""A folder that runs on its own: the file, its preprocessing and labels, and a short program to read and copy from."""

from pathlib import Path

from engines.tensorrt_rtx import CAPABILITIES
from toolchain.packaging.source import ONNXRUNTIME, TENSORRT, TENSORRT_RTX, Source
from toolchain.packaging.texts import filled, paragraph, preprocessing_in_words, script, write_card, write_labels

PLAIN = ("numpy>=2", "opencv-python-headless>=4.10", "pillow>=11")
"""What `run.py` needs whatever the runtime."""
CUDA_PACKAGES = {
    TENSORRT: ("tensorrt-cu13", "pycuda>=2025.1"),
    TENSORRT_RTX: ("tensorrt-rtx-cu13", "cuda-bindings>=13"),
}
"""What brings the runtime, where the engine does not say which it was, and what owns the GPU's memory in `run.py`."""
NOTES = {
    ONNXRUNTIME: paragraph("It runs on the CPU, with ONNX Runtime."),
    TENSORRT: paragraph(
        "It needs the TensorRT version that built it, and the kind of GPU that it was built for. TensorRT's",
        "libraries come from NVIDIA's own package index. `pycuda` is compiled when it is installed: that takes a",
        "C++ compiler and the CUDA toolkit.",
    ),
    TENSORRT_RTX: paragraph(
        f"It needs an NVIDIA GPU of compute capability {', '.join(CAPABILITIES)} (which leaves Hopper out), and the",
        "version of TensorRT-RTX that built it. The first run compiles for the GPU and takes longer.",
    ),
}


def write_folder(source: Source, folder: Path) -> None:
    """Fill an empty folder."""
    engine = source.path.name
    source.copy_to(folder / engine)
    write_card(source.card, folder)
    write_labels(source.card, folder)
    (folder / "run.py").write_text(script(source.runtime, "labels.txt", engine=engine), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join([*PLAIN, *_needed(source)]) + "\n", encoding="utf-8")
    sidecar = f"| `{engine}.json` | what that was made from, with hashes |\n" if source.artifact else ""
    text = filled(
        "folder.md",
        engine=engine,
        classes=f"{len(source.card.class_names):,}",
        note=NOTES[source.runtime],
        what={ONNXRUNTIME: "the model, for ONNX Runtime"}.get(source.runtime, "the engine"),
        sidecar=sidecar,
        preprocessing=preprocessing_in_words(source.card),
        tau=f"{source.card.tau:g}",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _needed(source: Source) -> tuple[str, ...]:
    """Packages of the runtime: an engine is for the version that built it, an ONNX file for that and later ones."""
    if source.runtime == ONNXRUNTIME:
        return (f"onnxruntime>={source.versions.get('onnxruntime', '1.22')}",)
    package, cuda = CUDA_PACKAGES[source.runtime]
    return ("==".join(source.builder) if source.builder else package, cuda)
