"""Loads a model quantised in a process of its own and prints the bytes it takes at most beside those it holds."""

import sys

from tunesmith.model.loading import ModelSource, load_model
from tunesmith.model.quantize import Quantization, stored


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


if __name__ == "__main__":
    small, large, name = sys.argv[1:]
    how = Quantization(name)
    load_model(ModelSource(small, None, how), "bfloat16")  # what is imported and opened on the way
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak begins here
    model = load_model(ModelSource(large, None, how), "bfloat16")
    size = sum(t.nbytes for p in model.parameters() for t in stored(p))
    print(resident("VmHWM") - before, size)
