"""The machine a run computes on: its device, threads and precision, and what to call them."""

import os

import datasets
import huggingface_hub
import torch
import transformers

from tools.errors import InputError


def pick_device(wanted):
    """--device as a torch.device: auto takes a CUDA GPU if there is one.  Raises InputError."""
    has_cuda = torch.cuda.is_available()
    is_here = {"cpu": True, "cuda": has_cuda, "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        wanted = "cuda" if has_cuda else "cpu"
    if not is_here[wanted]:
        raise InputError(f"--device {wanted}: torch sees no such GPU; use --device cpu")
    if wanted == "cuda":
        # Sums in a fixed order, so that a run repeats; cuBLAS needs this variable for it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # torchrun: one GPU each
        torch.use_deterministic_algorithms(True)
    return torch.device(wanted)


def pick_threads(task):
    """The demo's tensors are so small that a second thread would only wait for the first."""
    if task == "demo" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def device_name(device):
    """A GPU's name, or "cpu, 2 threads", as a run's first line and config.json say it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    if device.type == "mps":
        return "mps"
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread" + ("s" if threads > 1 else "")


def use_bf16(precision, device):
    """--precision as a bool: auto means bf16 autocast where the hardware computes in bf16.

    Elsewhere it is emulated and many times slower.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) is True for name in ("avx512_bf16", "amx_bf16"))


def quiet_libraries():
    """Commands speak for themselves; an import of a module leaves the libraries as they are."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
