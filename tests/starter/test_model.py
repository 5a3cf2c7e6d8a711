"""The weights that ship are the ones described, small enough, and their tokenizer and template do what training relies on."""

import json
import shutil
from pathlib import Path

import pytest

from tunesmith.errors import InputError
from tunesmith.starter import FILES, MODEL, build, tasks, verify, world
from tunesmith.starter.tokenizer import train_tokenizer

TOOL_ROW = next(r for r in tasks.rows(0, 40, held=False) if r["category"] == "tool")


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def test_files_are_the_ones_checksummed():
    verify()
    assert {p.name for p in MODEL.iterdir()} == {*FILES, "SHA256SUMS"}


def test_a_changed_file_and_a_missing_file_are_named(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    with (folder / "model.safetensors").open("r+b") as f:
        f.seek(-1, 2)
        last = f.read(1)
        f.seek(-1, 2)
        f.write(bytes([last[0] ^ 1]))
    with pytest.raises(InputError, match=r"model\.safetensors .* damaged"):
        verify(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is not in"):
        verify(folder)


def test_weights_are_bf16_llama_of_at_most_8_mb_and_5m_parameters():
    import torch
    from safetensors.torch import load_file

    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    assert (MODEL / "model.safetensors").stat().st_size <= 8_000_000
    tensors = load_file(MODEL / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert 1e6 <= sum(t.numel() for t in tensors.values()) <= 5e6
    assert all(t.isfinite().all() for t in tensors.values())


def test_words_are_one_token_and_digits_stand_alone(tokenizer):
    assert len(tokenizer) <= 4096
    whole = [w for w in world.WORDS if len(tokenizer(f" {w}").input_ids) == 1]
    assert len(whole) >= 0.98 * len(world.WORDS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("2026").input_ids) == ["2", "0", "2", "6"]


@pytest.mark.parametrize("text", ["Grüße, 世界! 🙂\t\n  x", " leading", "a  b\n\n\nc", "naïve — “quotes”", "\x00\x7f"])
def test_any_text_comes_back_byte_for_byte(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_template_shows_system_tools_calls_and_results(tokenizer):
    messages = [
        {"role": "system", "content": "Be short."},
        *TOOL_ROW["messages"],
        {"role": "tool", "content": "sunny"},
    ]
    shown = tokenizer.apply_chat_template(messages, tools=TOOL_ROW["tools"], tokenize=False, add_generation_prompt=True)
    first = TOOL_ROW["tools"][0]["function"]["name"]
    key, kind, what = tasks.TOOLS[first]
    assert shown.startswith(f"<|im_start|>system\nBe short.\nTools:\n- {first}({key}: {kind}): {what}\n- ")
    assert f"<|im_start|>assistant\n{tasks.answer_text(TOOL_ROW)}<|im_end|>\n" in shown
    assert shown.endswith("<|im_start|>tool\n<tool_response>sunny</tool_response><|im_end|>\n<|im_start|>assistant\n")


def test_template_reads_arguments_as_text_or_as_an_object_alike(tokenizer):
    import copy

    row = copy.deepcopy(TOOL_ROW)
    call = row["messages"][-1]["tool_calls"][0]["function"]
    as_text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    call["arguments"] = json.loads(call["arguments"])
    assert tokenizer.apply_chat_template(row["messages"], tokenize=False) == as_text


def test_rendering_grows_turn_by_turn(tokenizer):
    from tunesmith.starter.chats import chats

    for row in chats(0, 20, held=False):
        whole = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        for i, message in enumerate(row["messages"]):
            if message["role"] == "assistant":
                before = tokenizer.apply_chat_template(row["messages"][:i], tokenize=False, add_generation_prompt=True)
                assert whole.startswith(f"{before}{message['content']}<|im_end|>\n")


def test_tool_marks_survive_decoding_without_special_tokens(tokenizer):
    text = tasks.answer_text(TOOL_ROW)
    ids = tokenizer(f"{text}<|im_end|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_generation_stops_at_the_end_of_the_turn(tokenizer):
    stops = json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"]
    assert stops == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert tokenizer.pad_token_id not in stops
    assert tokenizer.eos_token == "<|endoftext|>"


def test_a_new_tokenizer_has_a_token_for_every_word_too():
    made = build.make_tokenizer()
    assert len(made) <= 4096
    whole = [w for w in world.WORDS if len(made(f" {w}").input_ids) == 1]
    assert len(whole) >= 0.98 * len(world.WORDS)


def test_training_the_tokenizer_twice_gives_the_same():
    texts = ["the cat sat", "the dog sat 12"] * 10
    one, two = (train_tokenizer(texts, 280).backend_tokenizer.to_str() for _ in range(2))
    assert one == two


@pytest.mark.parametrize(("name", "stage"), [("copying", 0), ("world", 1), ("practice", 2)])
def test_the_recipes_run_files_are_the_builds_own(name, stage):
    import yaml

    path = Path(__file__).resolve().parents[2] / "recipes" / "starter" / f"{name}.yaml"
    assert yaml.safe_load(path.read_text()) == build.stages(Path("starter-build"))[stage]
