"""The vendor's runtime, engine and runtime cache, and its logger's errors as ours."""

from pathlib import Path
from types import ModuleType
from typing import Any

from toolchain.artifacts import writing
from toolchain.errors import ArtifactError, BackendError, UsageError


class Runtime:
    """One deserialized engine. The vendor's objects refer to one another: all live as long as this one.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        name: what messages call it.
        content: the serialized engine.
        source: its file, for messages.
        cache: file of the runtime cache; None: without one.
    """

    def __init__(self, trt: ModuleType, name: str, content: bytes, source: Path, cache: Path | None) -> None:
        self.trt = trt
        self.name = name
        self.source = source
        self._logger = _logger(trt)
        self._cache_path = cache
        try:
            self._runtime = trt.Runtime(self._logger)
            # A version-compatible engine brings its own runtime along; ours are opened only with their hash intact.
            if hasattr(self._runtime, "engine_host_code_allowed"):
                self._runtime.engine_host_code_allowed = True
            self.engine = self._runtime.deserialize_cuda_engine(content)
        except Exception as error:  # The vendor's exceptions have no common base below Exception.
            raise self.refused(f"refuses {source}", str(error)) from error
        if self.engine is None:
            raise self.refused(f"refuses {source}")
        self._config, self._cache, self._cached = self._runtime_cache()

    def context(self) -> Any:
        """A new execution context."""
        try:
            create = self.engine.create_execution_context
            made = create() if self._config is None else create(self._config)
        except Exception as error:  # As above.
            raise self.refused(f"cannot prepare {self.source}", str(error)) from error
        if made is None:
            raise self.refused(f"cannot prepare {self.source}")
        return made

    def refused(self, what: str, otherwise: str = "") -> BackendError:
        """The logger's first error since the last one, or `otherwise`."""
        logged, self._logger.errors = self._logger.errors, []
        said = (logged[0] if logged else otherwise).strip()
        cause = said.splitlines()[0].rstrip(" .") if said else "it logged no error"
        remedy = f"build it for this GPU with this version of {self.name}"
        if "out of memory" in said.lower():
            remedy = "use a smaller batch, or free GPU memory"
        return BackendError(f"{self.name} {what} ({cause}): {remedy}.")

    def save_cache(self) -> None:
        """Write the runtime cache where it holds more than was read."""
        if self._cache is None or self._cache_path is None:
            return
        held = self._cache.serialize()
        content = b"" if held is None else bytes(held)
        if content and content != self._cached:
            with writing(self._cache_path) as temporary:
                temporary.write_bytes(content)

    def close(self) -> None:
        """Let go of the vendor's objects, the dependent ones first."""
        self._cache = self._config = None
        self.engine = None
        self._runtime = None

    def _runtime_cache(self) -> tuple[Any, Any, bytes]:
        """Runtime configuration, cache, and the cache's content as read; none of it where no cache is asked for."""
        if self._cache_path is None:
            return None, None, b""
        config: Any = self.engine.create_runtime_config() if hasattr(self.engine, "create_runtime_config") else None
        if not hasattr(config, "create_runtime_cache"):
            raise UsageError(f"{self.name} keeps no runtime cache: leave {self._cache_path} out.")
        cache = config.create_runtime_cache()
        content = _content(self._cache_path)
        # A cache of another GPU, driver or version is refused; it is replaced when the session closes.
        if content and not cache.deserialize(content):
            content = b""
        if not config.set_runtime_cache(cache):
            raise self.refused(f"takes no runtime cache for {self.source}")
        return config, cache, content


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): name another runtime cache.") from error


def _logger(trt: ModuleType) -> Any:
    """Keeps the errors."""

    class Recorder(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(text)

    return Recorder()
