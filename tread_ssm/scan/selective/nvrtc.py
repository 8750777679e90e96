"""CUDA C++ compiled at run time by NVRTC and launched through the driver, by ctypes alone.

torch's wheels bring libnvrtc and every NVIDIA driver brings libcuda, so that no compiler, no CUDA
toolkit and no further package is needed. Machine code is kept per source and options, loaded
kernels per device, both for the life of the process; each takes about a second once.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path

import torch

_MAX_DYNAMIC_SHARED_SIZE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_lock = threading.Lock()
_loaded: dict[tuple[object, ...], ctypes.c_void_p] = {}


@cache
def library() -> ctypes.CDLL:
    """libnvrtc of torch's CUDA version; OSError where there is none.

    The one beside torch comes first: one of a system's toolkit may be older and know fewer GPUs.
    """
    if torch.version.cuda is None:
        raise OSError("this build of torch has no CUDA, and brings no NVRTC")
    name = f"libnvrtc.so.{torch.version.cuda.split('.')[0]}"
    packages = Path(torch.__file__).parents[1] / "nvidia"
    for candidate in (*map(str, sorted(packages.glob(f"*/lib/{name}"))), name):
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise OSError(f"{name} was not found; torch's CUDA wheels bring it")


@cache
def architecture(capability: int) -> int | None:
    """The GPU to compile for so that the code runs on `capability` (90 for 9.0), or None.

    Code for 8.0 runs on 8.9 too, but on no other major version.
    """
    nvrtc, count = library(), ctypes.c_int()
    _check_nvrtc(nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _check_nvrtc(nvrtc.nvrtcGetSupportedArchs(known))
    fit = [a for a in known if a // 10 == capability // 10 and a <= capability]
    return max(fit, default=None)


@cache
def machine_code(source: str, capability: int, options: tuple[str, ...]) -> bytes:
    """The cubin of `source` for one compute capability (90 for 9.0). Needs no GPU."""
    nvrtc = library()
    program = ctypes.c_void_p()
    flags = [f"--gpu-architecture=sm_{capability}", "--std=c++17", *options]
    flags_c = (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
    _check_nvrtc(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"scan.cu", 0, None, None)
    )
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(flags), flags_c)
        if failed:
            log = _text(program, "ProgramLog").rstrip(b"\0").decode()
            raise RuntimeError(f"NVRTC could not compile for sm_{capability}: {log}")
        return _text(program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    nvrtc, size = library(), ctypes.c_size_t()
    _check_nvrtc(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check_nvrtc(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check_nvrtc(result: int) -> None:
    if result:
        text = library().nvrtcGetErrorString
        text.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {text(result).decode()}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check_driver(result: int, what: str) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        raise RuntimeError(f"{what}: {(text.value or b'unknown CUDA error').decode()}")


def _have_context(device: int) -> None:
    """Make torch's context current in this thread if none is: autograd's threads may have none."""
    context = ctypes.c_void_p()
    driver = _driver()
    _check_driver(driver.cuCtxGetCurrent(ctypes.byref(context)), "cuCtxGetCurrent")
    if not context:
        handle = ctypes.c_int()
        _check_driver(driver.cuDeviceGet(ctypes.byref(handle), device), "cuDeviceGet")
        retained = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle)
        _check_driver(retained, "cuDevicePrimaryCtxRetain")
        _check_driver(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")


def _kernel(
    device: int, source: str, name: str, options: tuple[str, ...], shared: int
) -> ctypes.c_void_p:
    """The loaded kernel, with leave to use `shared` bytes of dynamic shared memory."""
    key = (device, source, name, options)
    with _lock:
        if key not in _loaded:
            major, minor = torch.cuda.get_device_capability(device)
            target = architecture(10 * major + minor)
            if target is None:
                raise RuntimeError(f"NVRTC of CUDA {torch.version.cuda} knows no sm_{major}{minor}")
            code = machine_code(source, target, options)
            driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
            _check_driver(driver.cuModuleLoadData(ctypes.byref(module), code), "cuModuleLoadData")
            found = driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode())
            _check_driver(found, "cuModuleGetFunction")
            allowed = driver.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_SIZE, shared)
            _check_driver(allowed, f"{name} needs {shared} bytes of shared memory")
            _loaded[key] = function
        return _loaded[key]


def arguments(values: tuple[torch.Tensor | int | None, ...]) -> ctypes.Array[ctypes.c_void_p]:
    """Pointers to the values as a kernel takes them: a tensor's address, NULL, or a 32-bit int."""
    held = [
        ctypes.c_int(v)
        if isinstance(v, int)
        else ctypes.c_void_p(None if v is None else v.data_ptr())
        for v in values
    ]
    packed = (ctypes.c_void_p * len(held))(*(ctypes.addressof(h) for h in held))
    packed.held = held  # type: ignore[attr-defined]  # must live as long as the pointers to them
    return packed


def launch(
    source: str,
    name: str,
    options: tuple[str, ...],
    blocks: int,
    threads: int,
    shared: int,
    values: tuple[torch.Tensor | int | None, ...],
) -> None:
    """Start an extern "C" kernel of `source` on the current stream of the first tensor's device."""
    first = next(v for v in values if isinstance(v, torch.Tensor))
    with torch.cuda.device(first.device):
        device = torch.cuda.current_device()
        _have_context(device)
        kernel = _kernel(device, source, name, options, shared)
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        started = _driver().cuLaunchKernel(
            kernel, blocks, 1, 1, threads, 1, 1, shared, stream, arguments(values), None
        )
        _check_driver(started, f"launch of {name}")
