"""Adapters as folders: every kind loads, goes on being trained, and is refused for another base before a weight is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from builders import byte_tokenizer, tiny_model
from tunesmith.errors import InputError
from tunesmith.model import adapter_files, loading
from tunesmith.model.adapters import bottleneck, prefix, prompt
from tunesmith.model.adapters._rate import full
from tunesmith.model.loading import ModelSource, check_weights, load_model

IDS = torch.arange(20)[None]
TARGETS = ["q_proj", "v_proj", "down_proj"]
KINDS = {
    "LORA": {"target_modules": TARGETS, "lora_dropout": 0.1},
    "ADALORA": {"target_modules": TARGETS, "total_step": 10},
    "IA3": {},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "LOHA": {"target_modules": TARGETS},
    "VERA": {"target_modules": ["q_proj"]},
    "VBLORA": {"target_modules": TARGETS, "vector_length": 4, "num_vectors": 8},
    "TRAINABLE_TOKENS": {"token_indices": [3, 5]},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A Llama, a wider and deeper one, and a GPT-2."""
    folder = tmp_path_factory.mktemp("bases")
    for name, family, changes in (
        ("base", "llama", {}),
        ("wide", "llama", {"hidden_size": 64, "num_hidden_layers": 3}),
        ("gpt", "gpt2", {"num_key_value_heads": 4}),
    ):
        tiny_model(family, vocab_size=260, **changes).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    return folder


def adapted(bases, kind):
    from peft import get_peft_config, get_peft_model

    torch.manual_seed(0)
    base = load_model(ModelSource(str(bases / "base")), "float32")
    if kind == "BOTTLENECK":
        model = bottleneck.attach(base, size=3).model
    else:
        model = get_peft_model(base, get_peft_config({"peft_type": kind, "task_type": "CAUSAL_LM", **KINDS[kind]}))
    model.peft_config["default"].base_model_name_or_path = str(bases / "base")
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    return model.eval()


@pytest.fixture
def saved(bases, tmp_path):
    def save(kind):
        model = adapted(bases, kind)
        model.save_pretrained(tmp_path / kind)
        return model, str(tmp_path / kind)

    return save


@pytest.mark.parametrize("kind", [*KINDS, "BOTTLENECK"])
def test_every_kind_loads_is_trained_on_and_refused_elsewhere(bases, saved, kind, monkeypatch):
    model, folder = saved(kind)
    with torch.no_grad():
        wanted = model(IDS).logits
        for trainable in (False, True):
            loaded = load_model(ModelSource(str(bases / "base"), folder), "float32", trainable=trainable).eval()
            assert torch.equal(loaded(IDS).logits, wanted)
            trained = [n for n, p in loaded.named_parameters() if p.requires_grad]
            assert bool(trained) == (
                trainable and kind != "TRAINABLE_TOKENS"
            )  # whose rows new_tokens.train_rows trains
    names = (
        "lora_",
        "ia3_",
        "ln_tuning",
        "prompt_encoder",
        "hada_",
        "vera_lambda",
        "vblora_",
        "trainable_tokens",
        "adaption_",
        "adapter.",
    )
    assert all(any(name in n for name in names) for n in trained)  # nothing of the base
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # no weight is read
    for other in ("wide", "gpt"):
        if (kind, other) in [("PROMPT_TUNING", "gpt"), ("P_TUNING", "gpt"), ("ADAPTION_PROMPT", "gpt")]:
            continue  # of the same width, so they fit; PEFT itself has no word for the last
        with pytest.raises(InputError) as e:
            load_model(ModelSource(str(bases / other), folder))
        said = str(e.value)
        assert said.startswith(f"the adapter {folder} does not fit the model {bases / other}: its ")
        assert said.endswith(f"; it was made for {bases / 'base'}.")
        assert "\n" not in said


def test_the_sentence_names_the_shapes(bases, saved):
    _, folder = saved("LORA")
    with pytest.raises(InputError) as e:
        load_model(ModelSource(str(bases / "wide"), folder))
    assert "its model.layers.0.self_attn.q_proj.lora_A.weight is [8, 32], that model needs [8, 64]; it was" in str(
        e.value
    )
    with pytest.raises(InputError, match=r"its target_modules \(down_proj, q_proj, v_proj\) match nothing there"):
        load_model(ModelSource(str(bases / "gpt"), folder))


def changed(folder, tensors=None, **config):
    from safetensors.torch import load_file, save_file

    file = Path(folder, "adapter_config.json")
    content = json.loads(file.read_text()) | config
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    if tensors is not None:
        save_file(tensors(load_file(f"{folder}/adapter_model.safetensors")), f"{folder}/adapter_model.safetensors")


def rename(old, new):
    return lambda tensors: {k.replace(old, new): v for k, v in tensors.items()}


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        (
            {},
            lambda t: dict(list(t.items())[1:]),
            "its file lacks model.layers.0.mlp.down_proj.lora_A.weight, which that model needs",
        ),
        ({}, rename("layers.1.", "layers.7."), r"its model\.layers\.7\..* \[.*\] belongs to no module of that model"),
        ({"r": 4}, None, r"lora_A\.weight is \[8, 32\], that model needs \[4, 32\]"),
        ({"peft_type": "LORRA"}, None, 'the peft_type "LORRA", which cannot be loaded. Did you mean "LORA"'),
        ({"peft_type": None}, None, "has no peft_type, which cannot be loaded"),
        ({"task_type": "SEQ_CLS"}, None, "is an adapter for SEQ_CLS"),
    ],
)
def test_what_does_not_fit_is_named(bases, saved, config, tensors, words):
    """PEFT would pass over the first two in silence."""
    _, folder = saved("LORA")
    changed(folder, tensors, **config)
    with pytest.raises(InputError, match=words):
        load_model(ModelSource(str(bases / "base"), folder))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"placement": "somewhere"}, "placement should be one of houlsby, pfeiffer, found 'somewhere'"),
        ({"size": 0}, "size should be"),
        ({"widht": 3}, 'unknown key "widht"'),
        ({"placement": "pfeiffer"}, "belongs to no module"),
        ({"size": 4}, r"down\.bias is \[3\], that model needs \[4\]"),
    ],
)
def test_a_bottleneck_s_config_is_checked(bases, saved, config, words):
    _, folder = saved("BOTTLENECK")
    changed(folder, **config)
    with pytest.raises(InputError, match=words):
        load_model(ModelSource(str(bases / "base"), folder))


@pytest.mark.parametrize("kind", ["LORA", "BOTTLENECK"])
def test_damaged_and_pickled_files_are_refused(bases, saved, kind, tmp_path):
    _, folder = saved(kind)
    source, file = ModelSource(str(bases / "base"), folder), tmp_path / kind / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is damaged: \d+ bytes expected"):
        check_weights(source)
    file.write_bytes(b"\x80\x04 no tensors")
    with pytest.raises(InputError, match="is damaged"):
        load_model(source)
    shutil.move(file, tmp_path / kind / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin, a pickle, which can run code"):
        load_model(source)


def test_dropout_and_rank_go_on_as_they_were(bases, saved):
    _, folder = saved("LORA")
    loaded = load_model(ModelSource(str(bases / "base"), folder), "float32", trainable=True)
    layer = loaded.get_base_model().model.layers[0].self_attn.q_proj
    assert (layer.lora_dropout["default"].p, layer.r["default"]) == (0.1, 8)


def test_a_finished_adalora_says_that_its_ranks_stay(saved):
    assert "goes on with the ranks it has" in adapter_files.notice(saved("ADALORA")[1])
    assert adapter_files.notice(saved("LORA")[1]) is None


def test_an_adalora_goes_on_at_its_own_rate(saved):
    assert adapter_files.method(saved("ADALORA")[1]) == "adalora"
    assert adapter_files.method(saved("LORA")[1]) == "lora"


def test_a_run_that_was_moved_finds_the_base_it_merged_an_adapter_into(tmp_path):
    for name in ("run/base/config.json", "run/result/adapter_config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps({"base_model_name_or_path": "/gone/run/base"}))
    assert loading.resolve(str(tmp_path / "run" / "result")).base == str(tmp_path / "run" / "base")
    shutil.rmtree(tmp_path / "run" / "base")
    with pytest.raises(InputError, match=r"was trained on a model that is not here: there is no model folder /gone"):
        loading.resolve(str(tmp_path / "run" / "result"))


SLOWLY = pytest.mark.slow
LSTM = {"name": "p-tuning", "encoder": "LSTM", "dropout": 0.3}


@pytest.mark.parametrize(
    ("adapter", "rate"),
    [
        ({"name": "bottleneck"}, 30 * full(32)),
        (LSTM, prompt.LEARNING_RATE),  # the file holds the virtual tokens alone
        pytest.param({"name": "adalora", "tinit": 0, "tfinal": 1}, 50 * full(32), marks=SLOWLY),
        pytest.param({"name": "ia3"}, 100 * full(32), marks=SLOWLY),
        pytest.param({"name": "prefix", "projection": True}, prefix.LEARNING_RATE, marks=SLOWLY),
        pytest.param({"name": "vera"}, 10 * full(32), marks=SLOWLY),
    ],
)
def test_a_run_trains_an_adapter_and_another_goes_on_with_it(
    tiny_folder, rows_file, tmp_path, adapter, rate, monkeypatch
):
    """`adapter: {from: DIR}` and the run as a model: the second run starts at the first one's validation loss, and by its own rate.

    An encoder's dropout is no part of what is saved.
    """
    import yaml

    from tunesmith.training.api import train

    monkeypatch.chdir(tmp_path)
    asked = {
        "data": str(rows_file),
        "train": {
            "max_steps": 3,
            "max_length": 200,
            "dtype": "float32",
            "microbatch_tokens": 1024,
            "activation_checkpointing": "none",
        },
    }
    losses = []

    def listen(event):
        if event["event"] == "evaluate":
            losses.append(event["metrics"]["validation_loss"]["value"])

    first = train({**asked, "model": str(tiny_folder), "adapter": adapter, "output": "one"}, listeners=[listen])
    end = losses[-1]
    losses.clear()
    train({**asked, "adapter": {"from": "one"}, "output": "two"}, listeners=[listen])
    assert losses[0] == pytest.approx(end, abs=1e-6)
    assert losses[-1] < losses[0]
    kind = [json.loads(Path(run, "result", "adapter_config.json").read_text())["peft_type"] for run in ("one", "two")]
    assert kind[0] == kind[1]
    assert loading.resolve("two").base == loading.resolve(first["run"]).base
    found = yaml.safe_load(Path("two/run.yaml").read_text())["optimizer"]["learning_rate"]
    assert found == pytest.approx(rate, rel=0.05)  # two digits are kept
