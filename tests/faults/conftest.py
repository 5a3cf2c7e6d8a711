"""What runs are killed over: two tiny models with dropout, two files of rows, and a run of each that nothing happened to."""

import json
import shutil
import subprocess

import pytest
from driver import config

import tunesmith
from builders import byte_tokenizer, tiny_model


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A folder with model-lora (the adapter has dropout), model-full (attention has) and the rows a.jsonl and b.jsonl."""
    root = tmp_path_factory.mktemp("faults")
    for kind, changes in (("lora", {}), ("full", {"attention_dropout": 0.1})):
        model = tiny_model("llama", vocab_size=260, bos_token_id=None, eos_token_id=256, **changes)
        model.save_pretrained(root / f"model-{kind}")
        byte_tokenizer().save_pretrained(root / f"model-{kind}")
    for name, n in (("a", 12), ("b", 10)):
        rows = [{"instruction": f"{name} {7 * i}", "output": f"{i * i} {name}"} for i in range(n)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def train(material):
    """tunesmith.train over the material: call it with kind, output and more."""

    def call(kind, output, resume=False, listeners=(), **changes):
        return tunesmith.train(
            config(material, kind, **changes), output=str(output), resume=resume, listeners=listeners
        )

    return call


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a file system of so many bytes and returns its folder; skips where that is not allowed."""
    mounted = []

    def make(size: int):
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system needs root")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
