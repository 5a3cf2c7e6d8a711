"""Bad models and weights: exit code 2, one sentence with the place and the remedy, before any weight is loaded."""

import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest

ROW = '{"instruction": "red cat", "output": "cat red"}'


@pytest.fixture
def copied(tiny_folder):
    """A copy of the tiny model to be spoilt."""
    shutil.copytree(tiny_folder, "model")
    return Path("model")


def test_a_model_folder_without_weights(rejected, copied):
    (copied / "model.safetensors").unlink()
    assert "the model folder model holds no *.safetensors weights." in rejected(folder="model")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_weights_cut_short(rejected, copied, keep):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file} is damaged" in rejected(folder="model")


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, "x"]}}',
        b'{"a": {"data_offsets": []}}',
    ],
)
def test_weights_with_a_broken_header(rejected, copied, header):
    file = copied / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    assert f"{file} is damaged" in rejected(folder="model")


class Canary:
    def __reduce__(self):
        return (Path.touch, (Path.cwd() / "canary",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.safetensors", "model.bin"])
def test_pickled_weights_are_refused_and_never_run(rejected, copied, name):
    (copied / "model.safetensors").unlink()
    (copied / name).write_bytes(pickle.dumps(Canary()))
    said = rejected(folder="model")
    assert (
        "is damaged" in said if name.endswith("safetensors") else f"It has {name}, a pickle, which can run code" in said
    )
    assert not Path("canary").exists()
    pickle.loads((copied / name).read_bytes())  # it would have
    assert Path("canary").exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickled_adapter_is_refused(rejected, copied, name):
    Path("adapter").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "model", "r": 4, "target_modules": ["q_proj"]}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    (Path("adapter") / name).write_bytes(pickle.dumps(Canary()))
    assert f"It has {name}, a pickle" in rejected(folder="adapter")
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "model/config.json is no readable JSON; fetch or copy it again."),
        ("config.json", "[]", "model/config.json holds no JSON object."),
        ("config.json", "{}", 'the config of "model" cannot be loaded'),
        ("config.json", '{"model_type": "martian"}', 'the config of "model" cannot be loaded'),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}', "Field 'hidden_size' expected int, got str"),
        ("tokenizer.json", "{}", "the tokenizer of \"model\" cannot be loaded: it lacks 'added_tokens'."),
        ("config.json", '{"model_type": "t5"}', 'the model "model" is none that writes text'),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": 0}', "asks for 0 layers of width 4096"),
        ("tokenizer.json", "{", "model/tokenizer.json is no readable JSON"),
        ("tokenizer_config.json", "{", "model/tokenizer_config.json is no readable JSON"),
        ("chat_template.jinja", "{% for %}", "data.jsonl, row 1: the model's chat template refuses this conversation"),
        ("chat_template.jinja", "hello", "nothing"),
        ("model.safetensors.index.json", "{", "model.safetensors.index.json is damaged"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../x.safetensors"}}', "x.safetensors is named by"),
    ],
)
def test_model_files(rejected, copied, name, content, words):
    (copied / name).write_text(content)
    assert words in rejected(folder="model")


def test_places_that_are_no_model(rejected):
    Path("data.jsonl").write_text(ROW)
    assert "data.jsonl is a file; a model is a folder" in rejected(folder="data.jsonl")
    Path("empty").mkdir()
    assert "the folder empty holds no model" in rejected(folder="empty")
    assert "there is no model folder ./nowhere" in rejected(folder="./nowhere")
    assert '"nobody/nothing" is no local folder' in rejected(folder="nobody/nothing")
    assert "there is no model folder a b" in rejected(folder="a b")
