"""Weighted merges: each method against PEFT's own on the model, against the deltas, and against values by hand."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import tiny_model
from tunesmith.errors import InputError
from tunesmith.model import merging
from tunesmith.model.merge_report import compare
from tunesmith.model.merging import Layer, combine


def adapter(folder: Path, seed: int, family: str = "llama", **settings) -> str:
    """Save a LoRA adapter with random A and B for the tiny model of the family; return its folder."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        **{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings}
    )
    torch.manual_seed(seed)
    model = get_peft_model(tiny_model(family), config)
    for name, p in model.named_parameters():
        if "lora_B" in name or "embedding" in name:
            torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(folder / f"a{seed}")
    return str(folder / f"a{seed}")


@pytest.fixture
def pair(tmp_path):
    return [adapter(tmp_path, 1), adapter(tmp_path, 2)]


def deltas(layers):
    return {key: layer.scale * layer.b @ layer.a for key, layer in layers.items()}


def of_peft(folders, weights, method, **given):
    """Return the deltas of PEFT's own merge of the adapters on the model, by module."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny_model(), folders[0], adapter_name="0")
    for i, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(i))
    model.add_weighted_adapter(
        [str(i) for i in range(len(folders))], weights, "merged", combination_type=method, **given
    )
    return {
        (f"base_model.model.{name}", "lora_{}.weight"): m.get_delta_weight("merged").detach()
        for name, m in model.get_base_model().named_modules()
        if hasattr(m, "lora_A") and "merged" in m.lora_A
    }


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("cat", {}),
        ("linear", {}),
        ("svd", {"svd_rank": 3}),
        ("ties", {"density": 0.5}),
        ("ties_svd", {"density": 0.3, "svd_rank": 5}),
        ("magnitude_prune", {"density": 0.4}),
        ("magnitude_prune_svd", {"density": 0.4, "svd_rank": 4}),
    ],
)
@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.0, -0.5]])
def test_every_method_is_peft_s(pair, method, given, weights):
    ours = combine([merging.read(f) for f in pair], weights, method, given.get("svd_rank"), given.get("density", 0.5))
    wanted = of_peft(pair, weights, method, **given)
    found = deltas(ours)
    assert found.keys() == wanted.keys()
    assert all((found[key] - wanted[key]).abs().max() < 1e-5 for key in wanted)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_dare_draws_as_peft_does_and_again_by_its_seed(tmp_path, method, monkeypatch):
    """One layer, so that the order of the layers is no matter; PEFT is given the seed after it has drawn a fresh adapter."""
    from peft.tuners.lora import model as peft_lora

    monkeypatch.setattr(peft_lora, "_freeze_adapter", lambda *_: torch.manual_seed(3))
    folders = [adapter(tmp_path, s, target_modules=["q_proj"], layers_to_transform=[0]) for s in (1, 2)]
    parts = [merging.read(f) for f in folders]
    found = deltas(combine(parts, [0.7, 0.3], method, 4, 0.5, seed=3))
    wanted = of_peft(folders, [0.7, 0.3], method, density=0.5, **({"svd_rank": 4} if "svd" in method else {}))
    key = next(k for k in wanted if ".0." in k[0])
    assert (found[key] - wanted[key]).abs().max() < 1e-5
    state = torch.get_rng_state()
    again, other = (deltas(combine(parts, [0.7, 0.3], method, 4, 0.5, seed=s)) for s in (3, 4))
    assert torch.equal(again[key], found[key])
    assert not torch.equal(other[key], found[key])
    assert torch.equal(torch.get_rng_state(), state)


def test_what_each_method_makes_of_the_deltas(pair):
    """cat is the weighted sum; svd its best approximation; linear has cross terms; ties_svd at full rank is TIES on the deltas."""
    parts = [merging.read(f) for f in pair]
    one, two = (deltas(p.layers) for p in parts)
    key = next(iter(one))
    total = 0.7 * one[key] + 0.3 * two[key]
    assert torch.allclose(deltas(combine(parts, [0.7, 0.3]))[key], total, atol=1e-6)
    assert torch.allclose(deltas(combine(parts, [0.7, 0.3], "svd", 8))[key], total, atol=1e-6)
    u, s, vh = torch.linalg.svd(total)
    assert torch.allclose(deltas(combine(parts, [0.7, 0.3], "svd", 2))[key], u[:, :2] * s[:2] @ vh[:2], atol=1e-6)
    (a1, b1, s1), (a2, b2, s2) = (p.layers[key] for p in parts)
    cross = (0.7 * s1 * 0.3 * s2) ** 0.5 * (b1 @ a2 + b2 @ a1)
    assert torch.allclose(deltas(combine(parts, [0.7, 0.3], "linear"))[key], total + cross, atol=1e-5)
    full = deltas(combine(parts, [1.0, 1.0], "ties_svd", 32, density=1.0))[key]
    both = one[key].sign() == two[key].sign()
    larger = torch.where(one[key].abs() >= two[key].abs(), one[key], two[key])
    assert torch.allclose(full, torch.where(both, (one[key] + two[key]) / 2, larger), atol=1e-5)


def test_rslora_s_scale_and_patterns_count(tmp_path):
    """alpha / sqrt(r), and a rank and an alpha by layer, are in the merged folder's deltas: logits are those of plain PEFT."""
    from peft import PeftModel

    one = adapter(
        tmp_path, 1, use_rslora=True, rank_pattern={"down_proj": 7}, alpha_pattern={"layers.1.mlp.down_proj": 3}
    )
    two = adapter(tmp_path, 2, r=6, target_modules=["v_proj", "q_proj"], layers_to_transform=[1])
    parts = [merging.read(f) for f in (one, two)]
    merging.write(combine(parts, [1.0, 1.0]), [p.config for p in parts], tmp_path / "both")
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        model = PeftModel.from_pretrained(tiny_model(), one)
        model.load_adapter(two, adapter_name="two")
        model.base_model.set_adapter(["default", "two"])
        wanted = model(ids).logits
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "both")
        assert (loaded(ids).logits - wanted).abs().max() < 1e-5
        model.base_model.set_adapter("default")
        assert (model(ids).logits - wanted).abs().max() > 1e-3
    config = json.loads((tmp_path / "both" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (10, 10, {})
    assert sorted({name.split(".")[-1] for name in config["target_modules"]}) == ["down_proj", "q_proj", "v_proj"]


def test_embeddings_and_conv1d_layers_merge_too(tmp_path):
    from peft import PeftModel

    folders = [adapter(tmp_path, s, "gpt2", target_modules=["c_attn", "wte"], fan_in_fan_out=True) for s in (1, 2)]
    parts = [merging.read(f) for f in folders]
    ids = torch.arange(24).view(2, 12)
    for method, rank in (("cat", None), ("svd", 8), ("linear", None)):
        merging.write(combine(parts, [0.5, 2.0], method, rank), [p.config for p in parts], tmp_path / method)
        with torch.no_grad():
            model = PeftModel.from_pretrained(tiny_model("gpt2"), folders[0])
            model.load_adapter(folders[1], adapter_name="two")
            model.add_weighted_adapter(["default", "two"], [0.5, 2.0], "sum", combination_type=method)
            model.set_adapter("sum")
            wanted = model(ids).logits
            found = PeftModel.from_pretrained(tiny_model("gpt2"), tmp_path / method)(ids).logits
        assert (found - wanted).abs().max() < 1e-4


def test_bf16_files_are_added_in_fp32(pair):
    file = Path(pair[0]) / "adapter_model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file)
    part = merging.read(pair[0])
    assert all(t.dtype == torch.float32 for layer in part.layers.values() for t in layer[:2])


def test_the_report_by_hand():
    """Two layers of 2 x 2: part 1 changes (1,1) by 3 and (2,2) by 4, part 2 (1,1) by 1; merged 0.5 and 2 times."""
    unit = torch.eye(2)

    def layer(row, size):
        return Layer(unit[row : row + 1], unit[:, row : row + 1], size)

    q, v = ("m.0.q", "lora_{}.weight"), ("m.0.v", "lora_{}.weight")
    one, two = {q: layer(0, 3.0), v: layer(1, 4.0)}, {q: layer(0, 1.0)}
    found = compare([one, two], [0.5, 2.0], {q: layer(0, 3.5), v: layer(1, 2.0)})
    assert found["norm"] == pytest.approx((3.5**2 + 4) ** 0.5)
    assert found["distance_to_weighted_sum"] == pytest.approx(0, abs=1e-7)
    first, second = found["parts"]
    assert (first["norm"], second["norm"]) == (pytest.approx(5), pytest.approx(1))
    assert first["cosine"] == pytest.approx((3 * 3.5 + 4 * 2) / (5 * found["norm"]))
    assert first["distance"] == pytest.approx((0.5**2 + 2**2) ** 0.5)
    assert second["modules"] == {"q": pytest.approx(1), "v": None}
    assert compare([one, two], [0.5, 2.0], {q: layer(0, 3.5)})["distance_to_weighted_sum"] == pytest.approx(2)


def test_the_report_agrees_with_whole_deltas(pair):
    parts = [merging.read(f) for f in pair]
    merged = combine(parts, [0.7, 0.3], "linear")
    found = compare([p.layers for p in parts], [0.7, 0.3], merged)
    flat = [
        torch.cat([d.flatten() for d in deltas(x).values()]).double()
        for x in (parts[0].layers, parts[1].layers, merged)
    ]
    assert found["norm"] == pytest.approx(float(flat[2].norm()))
    assert found["parts"][1]["cosine"] == pytest.approx(float(torch.cosine_similarity(flat[1], flat[2], 0)), abs=1e-6)
    assert found["parts"][1]["distance"] == pytest.approx(float((flat[1] - flat[2]).norm()))
    assert found["distance_to_weighted_sum"] == pytest.approx(float((0.7 * flat[0] + 0.3 * flat[1] - flat[2]).norm()))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "is a LoRA adapter with use_dora"),
        ({"bias": "lora_only"}, "is a LoRA adapter with bias"),
        ({"modules_to_save": ["lm_head"]}, "is a LoRA adapter with modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
    ],
)
def test_what_is_no_sum_of_products_is_refused(tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        merging.read(adapter(tmp_path, 1, **settings))


def test_numbers_that_are_not_finite_are_not_merged(tmp_path):
    folder = adapter(tmp_path, 1)
    file = f"{folder}/adapter_model.safetensors"
    tensors = load_file(file)
    tensors[min(tensors)][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="down_proj hold numbers that are not finite"):
        merging.read(folder)


def test_parts_that_do_not_go_together_name_both_folders(tmp_path):
    one, two, other = adapter(tmp_path, 1), adapter(tmp_path, 2, r=3), adapter(tmp_path, 3, "gemma2")
    parts = {f: merging.read(f) for f in (one, two, other)}
    for method in ("linear", "ties", "dare_linear"):
        with pytest.raises(InputError, match=f"needs one rank, but {one} has 4 and {two} has 3; take cat or svd"):
            combine([parts[one], parts[two]], [1, 1], method)
    assert combine([parts[one], parts[two]], [1, 1], "ties_svd")
    with pytest.raises(
        InputError, match=f"{one} and {other} are adapters of different models: .*q_proj is .32, 32. in the one"
    ):
        combine([parts[one], parts[other]], [1, 1])
    with pytest.raises(InputError, match="--rank 33 is above that of the narrowest layer, 32"):
        combine([parts[one], parts[two]], [1, 1], "svd", 33)


def test_methods_are_named_as_the_field_does():
    assert merging.method_named("dare") == "dare_linear"
    with pytest.raises(InputError, match=r'no way to merge named "tise"\. Did you mean "ties"'):
        merging.method_named("tise")
    assert merging.default_weights(4, "cat") == [0.25] * 4
    assert merging.default_weights(2, "dare_ties") == [1.0, 1.0]
