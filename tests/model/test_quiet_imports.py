"""PEFT, with bitsandbytes and torchao where they are installed, comes in without a word and without fetching native code."""

import subprocess
import sys

import pytest

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install -e '.[quantize]')")

PROGRAM = """
import sys
import tunesmith.model.loading
{before}
import bitsandbytes, peft
from peft import LoraConfig
import kernels
assert kernels is sys.modules["kernels"] and kernels.asked == [], kernels.asked
kernels.get_kernel("a")  # whoever asks for it himself still has it
assert kernels.asked == ["a"] and bitsandbytes.nn.Linear4bit.__module__ == "bitsandbytes.nn.modules"
"""
KERNELS = "asked = []\n\ndef get_kernel(name, **more):\n    asked.append(name)\n"


@pytest.mark.parametrize("before", ["", "import kernels"])
def test_bitsandbytes_fetches_nothing(before, tmp_path, monkeypatch):
    """On a CPU with AVX512-BF16 it would, through the package `kernels` where that is installed, and else warn."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-c", PROGRAM.format(before=before)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failed_import_leaves_all_as_it_was(tmp_path, monkeypatch):
    import logging

    import tunesmith.model  # noqa: F401 (has the two imported as tested here)

    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("raise RuntimeError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kernels", sys)
    with pytest.raises(RuntimeError, match="broken"):
        import torchao  # noqa: F401
    assert sys.modules["kernels"] is sys
    assert logging.root.manager.disable == 0
