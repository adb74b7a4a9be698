"""The machine a run computes on: device, threads, precision, and what to call them."""

import os

import torch

from tools.command_line import InputError

# Where a user says how many threads torch may take; then torch's own reading of it stands.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def pick_device(wanted):
    """--device as a torch.device: auto takes a CUDA GPU if there is one.  Raises InputError."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU to be seen; use --device cpu")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: torch sees no Apple GPU; use --device cpu")
    if wanted == "cuda":
        # Sums in a fixed order, so that a run repeats; cuBLAS needs this variable for it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(number_of_gpu())
        torch.use_deterministic_algorithms(True)
    return torch.device(wanted)


def number_of_gpu():
    """Each of torchrun's processes has a GPU of its own.  Raises InputError."""
    number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= there:
        raise InputError(f"process {number + 1} of this machine has no GPU: it has {there}; use "
                         f"torchrun --nproc-per-node {there}, or --device cpu")
    return number


def pick_threads(task):
    """The demo's tensors are small: a second thread would only wait for the first, and much
    longer where another program uses its core."""
    user_decided = any(name in os.environ for name in THREAD_VARIABLES)
    if task == "demo" and not user_decided:
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
    """--precision: auto means bf16 autocast where the hardware computes in it; elsewhere it is
    emulated and many times slower."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) is True for name in ("avx512_bf16", "amx_bf16"))
