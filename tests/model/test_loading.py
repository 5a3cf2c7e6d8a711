"""What MODEL means, and that what cannot be loaded safely is said in a sentence before a weight is read."""

import json
import shutil
import time

import pytest
import torch

from tunesmith.errors import InputError
from tunesmith.model.loading import ModelSource, check_weights, load_config, load_model, load_tokenizer, resolve


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def adapter_on(base, folder):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)}))
    return folder


def test_resolve_tells_folders_runs_adapters_and_hub_ids_apart(folder, tmp_path):
    assert resolve(str(folder)) == ModelSource(str(folder))
    assert resolve("someone/some-model") == ModelSource("someone/some-model")
    run = tmp_path / "run"
    adapter = adapter_on(folder, run / "result")
    (run / "run.yaml").write_text("model: x")
    assert resolve(str(run)) == ModelSource(str(folder), str(adapter))
    assert resolve(str(folder), str(run)) == ModelSource(str(folder), str(adapter))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("", "path is empty"),
        ("./modell", 'Did you mean "model"'),
        ("model/config.json", "is a file"),
        ("empty", "holds no model"),
        ("unfinished", "has no result yet"),
        ("orphan", "was trained on a model that is not here: there is no model folder /nowhere/base"),
        ("stacked", "stands on another adapter"),
        ("broken", "is no readable JSON"),
        ("nameless", "names no base model"),
    ],
)
def test_resolve_refuses_in_a_sentence(folder, tmp_path, monkeypatch, model, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "run.yaml").touch()
    orphan = adapter_on("/nowhere/base", tmp_path / "orphan")
    adapter_on(orphan, tmp_path / "stacked")
    (adapter_on("x", tmp_path / "broken") / "adapter_config.json").write_text("{")
    (adapter_on("", tmp_path / "nameless")).touch()
    with pytest.raises(InputError) as e:
        resolve(model)
    assert words in str(e.value)


def test_whole_weights_pass_and_every_damage_is_named(folder):
    source, file = ModelSource(str(folder)), folder / "model.safetensors"
    check_weights(source)
    whole = file.read_bytes()
    for content, words in (
        (whole[:-10], "bytes expected"),
        (whole + b"x", "bytes expected"),
        (whole[:100], "cut short"),
        (b"abc", "cut short"),
        (b"", "cut short"),
        (len(b"[1]").to_bytes(8, "little") + b"[1]", "no safetensors header"),
        (len(b"{no").to_bytes(8, "little") + b"{no", "no safetensors header"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors is damaged") as e:
            check_weights(source)
        assert words in str(e.value)


def test_pickles_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no \*.safetensors weights. It has pytorch_model.bin, a pickle"):
        check_weights(ModelSource(str(folder)))


def test_an_adapter_s_pickles_are_refused(folder, tmp_path):
    adapter = adapter_on(folder, tmp_path / "adapter")
    (adapter / "adapter_model.bin").touch()
    for _ in range(2):
        with pytest.raises(InputError, match=r"adapter_model.bin, a pickle"):
            check_weights(ModelSource(str(folder), str(adapter)))
        shutil.copy(folder / "model.safetensors", adapter / "other.safetensors")  # which PEFT would not read


def test_a_sharded_model_lacking_a_shard_is_refused(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "../../etc/passwd"}}))
    with pytest.raises(InputError, match=r"passwd is named by model.safetensors.index.json but is not there"):
        check_weights(ModelSource(str(folder)))
    index.write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        check_weights(ModelSource(str(folder)))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_of_the_model_is_one_sentence(folder, name):
    (folder / name).write_text("{broken")
    load = load_config if name == "config.json" else load_tokenizer
    with pytest.raises(InputError) as e:
        load(ModelSource(str(folder)))
    assert str(folder) in str(e.value)
    assert "\n" not in str(e.value)


def test_a_hub_id_without_a_hub_is_said_at_once(monkeypatch):
    """The hub's own client retries for a minute; we ask whether it is there, once."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    began = time.perf_counter()
    with pytest.raises(InputError, match=r'"startr" is no local folder.*Did you mean "starter"'):
        load_config(ModelSource("startr"))
    with pytest.raises(InputError, match=r'"nobody/nothing" is no local folder.*not reachable'):
        load_tokenizer(ModelSource("nobody/nothing"))
    assert time.perf_counter() - began < 3


def test_a_tokenizer_without_a_template_gets_the_plain_one(folder):
    (folder / "chat_template.jinja").unlink()
    tokenizer, notices = load_tokenizer(ModelSource(str(folder)))
    assert "no chat template" in notices[0]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False
    )
    assert text == "User: a\n\nAssistant: b<eos>\n"


def test_an_adapter_s_tokenizer_is_asked_first(folder, tmp_path):
    adapter = adapter_on(folder, tmp_path / "adapter")
    tokenizer, _ = load_tokenizer(ModelSource(str(folder)))
    tokenizer.chat_template = "mine"
    tokenizer.save_pretrained(adapter)
    assert load_tokenizer(ModelSource(str(folder), str(adapter)))[0].chat_template == "mine"


def test_load_model_keeps_values_and_changes_dtype(folder):
    exact = load_model(ModelSource(str(folder)), "float32")
    half = load_model(ModelSource(str(folder)), "bfloat16")
    for (name, a), b in zip(exact.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b), name
