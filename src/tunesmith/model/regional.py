"""Regional compilation: torch.compile of each decoder layer by itself, so that one compiled layer serves them all."""

import shutil
from typing import Any

from tunesmith.errors import InputError


def check_compiler(device: str) -> None:
    """InputError unless what torch.compile needs to build kernels for the device is there: g++ or clang for a CPU, triton for a GPU."""
    from importlib.util import find_spec

    if device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        raise InputError(
            "train.compile needs a C++ compiler, and there is neither g++ nor clang++ here; install one or leave it out."
        )
    if device == "cuda" and find_spec("triton") is None:
        raise InputError("train.compile needs the package triton on a GPU; install it or leave it out.")


def compile_layers(policy: Any) -> int:
    """Compile the policy's decoder layers in place, for any number of tokens, flat attention left as it is; return how many.

    The first forward and backward pass take about a minute longer (one kind of layer is compiled once). Call it after layers
    were fused and set to recompute.
    """
    from tunesmith.model import attention
    from tunesmith.model.activations import decoder_layers

    attention.register(opaque=True)
    layers = decoder_layers(policy.model)
    for layer in layers:
        layer.compile(dynamic=True)
    policy.fill_up()
    return len(layers)
