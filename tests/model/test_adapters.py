"""Adapters: what is trained, what a fresh one changes (nothing), and what is refused."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from builders import tiny_config, tiny_model
from tunesmith import registry
from tunesmith.arguments import named
from tunesmith.errors import InputError
from tunesmith.model.adapters import _other, dora, freeze, full, ia3, layernorm, lora, lora_plus, pissa, rslora
from tunesmith.model.adapters._factors import factors
from tunesmith.model.adapters._lora import reach


def test_full_trains_everything():
    model = tiny_model().requires_grad_(False)
    assert all(p.requires_grad for p in full.attach(model).model.parameters())


def test_a_fresh_lora_changes_nothing_and_trains_only_itself():
    ids = torch.arange(12)[None]
    wanted = tiny_model()(ids).logits
    model = lora.attach(tiny_model(), r=4).model
    assert torch.equal(model(ids).logits, wanted)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if ".lora_" in n}
    # two layers x (q, k, v, o, gate, up, down) x (A, B): all linear layers, never the head
    assert len(trained) == 2 * 7 * 2
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.task_type) == (4, 8, "CAUSAL_LM")


def test_lora_s_arithmetic_by_hand():
    """With A and B set by hand a layer gives x W^T + alpha / r x A^T B^T."""
    model = lora.attach(tiny_model(dtype=torch.float64), r=2, alpha=6, target_modules=["q_proj"]).model
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_()
    x = torch.randn(3, 32, dtype=torch.float64)
    wanted = x @ layer.base_layer.weight.T + 3 * (x @ a.T) @ b.T
    assert torch.allclose(layer(x), wanted, atol=1e-12)


@pytest.mark.parametrize(("family", "experts", "rank"), [("mixtral", 4, 6), ("qwen3_moe", 6, 6), ("gpt_oss", 4, 3)])
def test_all_linear_reaches_experts_and_the_saved_adapter_is_plain_peft_s(family, experts, rank, tmp_path):
    """Each expert has an A and a B with gradients; after a step the folder gives the same logits in PEFT and merged."""
    model = lora.attach(tiny_model(family), r=3).model
    assert reach(model) == ("LoRA reaches the experts (mlp.experts.down_proj, mlp.experts.gate_up_proj)",)
    ids = torch.arange(60).view(2, 30)
    for _ in range(2):  # B is zero at first, so A's gradient comes with the second step
        model.zero_grad()
        model(ids).logits.pow(2).sum().backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= 0.01 * p.grad / (1e-6 + p.grad.norm())
    layer = model.get_base_model().model.layers[1].mlp.experts  # PEFT wraps parameter by parameter
    wrapped = {layer.parameter_name: layer, layer.base_layer.parameter_name: layer.base_layer}
    for name, r in (("down_proj", 3), ("gate_up_proj", rank)):  # Mixtral's kind has gate and up of rank r each
        for weight, dimension in (
            (wrapped[name].lora_A["default"].weight, 0),
            (wrapped[name].lora_B["default"].weight, 1),
        ):
            assert weight.shape[dimension] == experts * r
            assert weight.grad.abs().sum(1 - dimension).min() > 0  # every expert of this batch
    with torch.no_grad():
        wanted = model(ids).logits
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path)
        assert torch.equal(loaded(ids).logits, wanted)
        assert (loaded.merge_and_unload()(ids).logits - wanted).abs().max() < 1e-4
        assert (tiny_model(family)(ids).logits - wanted).abs().max() > 1e-3


def test_experts_by_name_alone_or_left_alone():
    model = lora.attach(tiny_model("gpt_oss"), target_modules=[], target_parameters=["mlp.experts.down_proj"]).model
    assert {n.split("layers.")[1][2:] for n, p in model.named_parameters() if p.requires_grad} == {
        "mlp.experts.lora_A.default.weight",
        "mlp.experts.lora_B.default.weight",
    }
    assert "reaches" in reach(model)[0]
    model = lora.attach(tiny_model("mixtral"), target_modules=["q_proj"], dropout=0.1).model
    assert "LoRA leaves the experts as they are" in reach(model)[0]
    assert reach(lora.attach(tiny_model()).model) == ()


def test_parameters_that_match_nothing_are_refused_with_those_there_are():
    with pytest.raises(InputError, match=r'ends in "mlp\.down_proj"; its .* are mlp\.experts\.down_proj, mlp'):
        lora.attach(tiny_model("mixtral"), target_parameters=["mlp.experts.down_proj", "mlp.down_proj"])
    with pytest.raises(InputError, match="it has no experts"):
        lora.attach(tiny_model(), target_parameters=["experts"])


def test_dropout_on_experts_is_refused():
    with pytest.raises(
        InputError, match=r"dropout 0\.1: PEFT has no dropout for parameters such as mlp\.experts\.down_proj"
    ):
        lora.attach(tiny_model("mixtral"), dropout=0.1)


def test_targets_that_match_nothing_are_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"\['q_prj'\] matches nothing.*down_proj, gate_proj, k_proj"):
        lora.attach(tiny_model(), target_modules=["q_prj"])
    with pytest.raises(InputError, match=r"\[\] matches nothing"):
        lora.attach(tiny_model(), target_modules=[])


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_the_output_layer_is_refused(targets):
    """The policy multiplies by the head's own weight, so an adapter there would be left out silently."""
    with pytest.raises(InputError, match="reaches the output layer"):
        lora.attach(tiny_model(), target_modules=targets)


def on_meta(family="llama", **changes):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(family, **changes))


def trained(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen3"])
@pytest.mark.parametrize(
    "name", ["full", "freeze", "lora", "lora+", "rslora", "dora", "pissa", "adalora", "ia3", "layernorm"]
)
def test_what_is_trained_is_known_without_weights_and_nothing_is_changed_at_first(name, family):
    attach = registry.load("model.adapters", name).attach
    expected = trained(attach(on_meta(family)).model)
    ids = torch.arange(12)[None]
    wanted = tiny_model(family).eval()(ids).logits
    torch.manual_seed(0)
    model = attach(tiny_model(family)).model.eval()
    assert trained(model) == expected
    bound = 2e-5 if name == "pissa" else 1e-6 if name == "dora" else 0
    assert (model(ids).logits - wanted).abs().max() <= bound


def test_layers_are_chosen_from_either_end():
    model = lora.attach(tiny_model(), r=2, layers_to_transform=[-1], target_modules=["q_proj"]).model
    assert {n.split(".lora_")[0] for n in trained(model)} == {"base_model.model.model.layers.1.self_attn.q_proj"}
    assert len(trained(lora.attach(tiny_model(), r=2, layers_to_transform=[0]).model)) == 14
    with pytest.raises(InputError, match=r"layers_to_transform has 2, but this model's layers are 0 to 1"):
        lora.attach(tiny_model(), layers_to_transform=[2])
    with pytest.raises(InputError, match="an expression says the layers itself"):
        lora.attach(tiny_model(), layers_to_transform=[0], target_modules=".*q_proj")


def test_a_rank_above_the_matrix_is_refused_with_its_place():
    with pytest.raises(
        InputError,
        match=r"rank 17 is above that of model\.layers\.0\.self_attn\.k_proj, a matrix of 16 x 32; set it to 16 at most",
    ):
        lora.attach(on_meta(), r=17)
    lora.attach(on_meta(), r=17, target_modules=["q_proj"])


def test_one_misspelt_target_among_right_ones_is_not_passed_over():
    with pytest.raises(InputError, match=r'no module of this model is named "v_prj"; did you mean "v_proj"'):
        lora.attach(on_meta(), target_modules=["q_proj", "v_prj"])
    with pytest.raises(InputError, match="is no regular expression"):
        lora.attach(on_meta(), target_modules="*q_proj")


def test_rslora_s_scale_and_lora_plus_rates():
    """alpha / sqrt(r) = 8 / 2 at rank 4, and LoRA's own 2 at rank 16; B's rate is sixteen times A's."""
    layer = rslora.attach(tiny_model(), r=4).model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 4
    layer = rslora.attach(tiny_model()).model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 2
    made = lora_plus.attach(tiny_model(), r=4)
    assert dict(made.ratios) == {n: 16.0 for n in trained(made.model) if "lora_B" in n}
    assert len(made.ratios) == 14


def test_dora_by_hand():
    """m (W + s B A) x / ||W + s B A||, a length for each row."""
    model = dora.attach(tiny_model(dtype=torch.float64), r=2, alpha=6, target_modules=["q_proj"]).model
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    m = layer.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        m.mul_(1.5)
    whole = layer.base_layer.weight + 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    x = torch.randn(3, 32, dtype=torch.float64)
    assert torch.allclose(layer(x), x @ (m[:, None] * whole / whole.norm(dim=1, keepdim=True)).T, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("niter", [0, 16])
def test_pissa_begins_as_peft_s_and_is_saved_for_the_untouched_base(family, niter, tmp_path):
    """A and B are W's largest singular directions; after training, the file on the untouched W gives the same logits in plain PEFT."""
    torch.manual_seed(0)
    model = pissa.attach(tiny_model(family), r=4, niter=niter).model.eval()
    if niter == 0:  # the fast way is drawn at random
        config = LoraConfig(
            r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights="pissa", task_type="CAUSAL_LM"
        )
        wanted = dict(get_peft_model(tiny_model(family), config).named_parameters())
        for name, p in model.named_parameters():
            if "lora_A" in name:
                other = name.replace("lora_A", "lora_B")
                ours, theirs = model.get_parameter(other) @ p, wanted[other] @ wanted[name]  # signs are free
                assert torch.allclose(ours, theirs, atol=1e-5)
            elif "lora_B" not in name:
                assert torch.allclose(p, wanted[name], atol=1e-5)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.add_(0.05 * torch.randn_like(p))
        logits = model(ids).logits
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path).eval()
        assert (loaded.peft_config["default"].r, loaded.peft_config["default"].lora_alpha) == (8, 8)
        assert torch.allclose(loaded(ids).logits, logits, atol=1e-5 * float(logits.abs().max()))
        assert torch.allclose(loaded.merge_and_unload()(ids).logits, logits, atol=1e-5 * float(logits.abs().max()))
    assert model.peft_config["default"].r == 4


def test_the_best_part_of_low_rank():
    """scale B A of a matrix of rank 3 is the matrix; of rank 1 it leaves the other singular values."""
    torch.manual_seed(0)
    matrix = torch.randn(9, 3) @ torch.randn(3, 7)
    for niter in (0, 16):
        a, b = factors(matrix, 3, 2.0, niter)
        assert torch.allclose(2 * b @ a, matrix, atol=1e-5)
        a, b = factors(matrix, 1, 2.0, niter)
        left = torch.linalg.svdvals(matrix)[1:].norm()
        assert abs((matrix - 2 * b @ a).norm() - left) < 1e-4
        assert torch.allclose(a.norm(), b.norm(), atol=1e-4)


def test_ia3_s_targets_and_arithmetic():
    made = ia3.attach(tiny_model())
    assert {n.rsplit(".", 3)[1] for n in {n.replace(".ia3_l.default", ".x.y") for n in trained(made.model)}} == {
        "k_proj", "v_proj", "down_proj",
    }  # fmt: skip
    layer = made.model.base_model.model.model.layers[0].mlp.down_proj
    with torch.no_grad():
        layer.ia3_l["default"].normal_()
    x = torch.randn(3, 48)
    assert torch.allclose(layer(x), (x * layer.ia3_l["default"].flatten()) @ layer.base_layer.weight.T, atol=1e-5)
    config = ia3.attach(tiny_model("gpt2")).model.peft_config["default"]
    assert config.feedforward_modules == {"mlp.c_proj"}
    with pytest.raises(InputError, match=r'feedforward_modules: "fc1" is not among adapter\.target_modules'):
        ia3.attach(tiny_model(), target_modules=["k_proj"], feedforward_modules=["fc1"])


def test_every_norm_is_found():
    assert layernorm.norms(tiny_model("qwen3")) == [
        "input_layernorm",
        "k_norm",
        "norm",
        "post_attention_layernorm",
        "q_norm",
    ]
    assert layernorm.norms(tiny_model("gpt2")) == ["ln_1", "ln_2", "ln_f"]


class TestFreeze:
    def test_the_last_layers(self):
        assert trained(freeze.attach(tiny_model(), layers=1).model) == {
            n for n, _ in tiny_model().named_parameters() if ".layers.1." in n
        }
        with pytest.raises(InputError, match=r"adapter\.layers is 3, but this model has 2 layers"):
            freeze.attach(on_meta(), layers=3)

    def test_by_name_together_with_others(self):
        found = trained(freeze.attach(tiny_model(), pattern=["norm", r"layers\.0\..*q_proj"], layers=1).model)
        names = [n for n, _ in tiny_model().named_parameters()]
        assert found == {
            n for n in names if "norm" in n or ".layers.1." in n or n == "model.layers.0.self_attn.q_proj.weight"
        }
        with pytest.raises(
            InputError, match=r'"q_prj" is found in no parameter\'s name; they end in .*mlp\.down_proj\.weight'
        ):
            freeze.attach(on_meta(), pattern="q_prj")
        with pytest.raises(InputError, match="is no regular expression"):
            freeze.attach(on_meta(), pattern="(")

    def test_signal_to_noise_by_hand(self):
        """Singular values 10, 2, 1.9, 1.8: quartiles 1.875 and 4, sigma 2.125 / 1.349, square: threshold 2 sigma = 3.15: 10 / 5.7 / 10."""
        matrix = torch.diag(torch.tensor([10.0, 2.0, 1.9, 1.8]))
        assert freeze.signal_to_noise(matrix) == pytest.approx(10 / 5.7 / 10, rel=1e-5)
        assert freeze.signal_to_noise(torch.eye(4)) == float("inf")  # no noise

    def test_the_matrices_with_most_signal_of_each_kind(self):
        """Half of two layers' is one of each kind. The ratio is over the largest singular value: of a hundredth of a matrix it is more."""
        model = tiny_model()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.ndim == 2 and ".layers." in name and (".1." in name) == ("mlp" in name):
                    p.mul_(0.01)
        found = trained(freeze.attach(model, spectrum=0.5).model)
        assert len(found) == 7
        assert all((".1." in n) == ("mlp" in n) for n in found)
        assert len(trained(freeze.attach(on_meta(), spectrum=0.5).model)) == 7


class TestOther:
    def test_a_method_of_peft_by_its_name_in_any_case(self):
        made = registry.load("model.adapters", "VeRA").attach(tiny_model(), r=4, target_modules=["q_proj"])
        assert len(trained(made.model)) == 4
        assert "untested here" in made.notices[0]
        assert made.model.peft_config["default"].r == 4

    def test_its_config_is_the_schema(self):
        given = {"name": "vera", "r": 4, "d_initial": 0.2, "target_modules": ["q_proj"]}
        assert named(given, "model.adapters", "attach", "adapter", "run") == {
            k: v for k, v in given.items() if k != "name"
        }
        with pytest.raises(InputError, match=r'run: adapter: unknown key "d_inital".* "d_initial"'):
            named({"name": "vera", "d_inital": 1}, "model.adapters", "attach", "adapter", "run")
        with pytest.raises(InputError, match=r"run: adapter: r should be a whole number"):
            named({"name": "vera", "r": "many"}, "model.adapters", "attach", "adapter", "run")

    def test_what_is_refused(self):
        for name, why in {
            "ln_tuning": "is named layernorm here",
            "QLoRA": "is the adapter lora with model.quantize nf4 here",
            "lora_plus": r"is the adapter lora\+ here",
            "xlora": "adapters that must be trained before",
            "cpt": "rows of the data",
            "lroa": 'Did you mean "lora"',
            "verra": 'Did you mean "vera"',
            "mixed": "there is no adapter",
        }.items():
            with pytest.raises(InputError, match=why):
                registry.load("model.adapters", name)
        with pytest.raises(InputError, match="PEFT refuses this: The block size should be a factor"):
            registry.load("model.adapters", "c3a").attach(on_meta())

    def test_names_are_known_without_importing_peft(self):
        import subprocess
        import sys

        code = "import sys; from tunesmith.model.adapters import _other; assert 'vera' in _other.names(); assert 'peft' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert not set(_other.names()) & set(registry.names("model.adapters"))


def test_a_quantised_model_is_refused_where_its_own_weights_are_meant():
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit

    model = tiny_model()
    model.model.layers[0].self_attn.q_proj = Linear4bit(32, 32, bias=False)
    for name in ("pissa", "freeze"):
        with pytest.raises(
            InputError, match=r"model\.layers\.0\.self_attn\.q_proj is quantised; leave model\.quantize out"
        ):
            registry.load("model.adapters", name).attach(model)
