"""The reference: the policy as the run began, to the bit, at any later step and whatever is trained."""

import numpy as np
import pytest
import torch

from builders import random_examples, tiny_model, with_lora
from tunesmith.model.activations import checkpoint_activations
from tunesmith.model.adapters import full, lora
from tunesmith.model.lora import fuse
from tunesmith.model.policy import make_policy
from tunesmith.model.reference import Reference
from tunesmith.training.arrange import arrange
from tunesmith.training.batch import collate


def fresh(kind):
    """A model as attach leaves it, and how many weights its reference must keep (None: those that are trained)."""
    from peft import AdaLoraConfig, IA3Config, PromptTuningConfig, get_peft_model

    torch.manual_seed(1)
    if kind == "full":
        return full.attach(tiny_model()).model, None
    if kind == "two layers of the model":
        model = tiny_model().requires_grad_(False)
        model.model.layers[1].requires_grad_(True)
        return model, None
    if kind == "fresh lora":
        return lora.attach(tiny_model(), r=4).model, 0
    if kind == "fresh lora on experts":
        return lora.attach(tiny_model("mixtral"), r=4).model, 0
    if kind == "trained lora":
        return with_lora(tiny_model()), None
    if kind == "trained lora, bias too":
        config = lora.attach(tiny_model("gpt2"), r=4).model.peft_config["default"]
        config.bias = "lora_only"
        return get_peft_model(tiny_model("gpt2"), config), None
    if kind == "ia3":
        return get_peft_model(tiny_model(), IA3Config(task_type="CAUSAL_LM")), 0
    if kind == "pissa":
        config = lora.attach(tiny_model(), r=4).model.peft_config["default"]
        config.init_lora_weights = "pissa"
        return get_peft_model(tiny_model(), config), None
    if kind == "prompt":
        return get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)), None
    model = get_peft_model(tiny_model(), AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=9))
    for name, p in model.named_parameters():
        if "lora_E" in name:
            torch.nn.init.normal_(p)
    return model, None


KINDS = [
    "full",
    "two layers of the model",
    "fresh lora",
    "trained lora",
    "trained lora, bias too",
    "ia3",
    "pissa",
    "adalora",
]


def batch_of(policy):
    examples = random_examples(4)
    ((rows, clusters),) = arrange(examples, np.arange(4), 4096, link=policy.flat)
    return collate(examples, rows, clusters)


def train(policy, batch, steps, reference=None):
    """Take steps of SGD that move every trained weight; in each the reference is asked between the forward and the backward."""
    policy.train()
    trained = [p for p in policy.parameters() if p.requires_grad]
    for _ in range(steps):
        loss = -policy(batch).sum()
        if reference is not None:
            loss = loss + (policy(batch) - reference.logps(batch)).square().sum()
        for p, g in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
            if g is not None:
                p.data -= 0.05 * g / (g.norm() + 1e-9)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "fresh lora on experts"])
def test_after_five_steps_it_is_still_the_start_to_the_bit(kind, fused):
    model, kept = fresh(kind)
    if fused:
        fuse(model)
        checkpoint_activations(model, "full")
    policy, _ = make_policy(model)
    batch = batch_of(policy)
    policy.eval()
    with torch.no_grad():
        began = policy(batch)
    reference = Reference(policy)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert torch.equal(reference.logps(batch), began)
    train(policy, batch, 5, reference)
    assert policy.training
    found = reference.logps(batch)
    assert torch.equal(found, began)
    assert not found.requires_grad
    with torch.no_grad():
        assert (policy(batch) - began).abs().max() > 1e-3  # the policy itself has moved
    if kept == 0 and not fused:
        assert reference.bytes == 0
        assert "switched off" in reference.sentence
    if kept is None:
        assert reference.bytes >= 4 * trained
        assert "a frozen copy of the" in reference.sentence


@pytest.mark.parametrize("kind", ["full", "trained lora"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_asking_it_changes_no_gradient(kind, checkpointing):
    """Between a forward and its backward, recomputed layers included, and in the middle of dropout's random numbers."""
    gradients = []
    for asked in (False, True):
        model, _ = fresh(kind)
        fuse(model)
        policy, _ = make_policy(model)
        checkpoint_activations(model, checkpointing)
        batch = batch_of(policy)
        reference = Reference(policy)
        train(policy, batch, 1)
        loss = -policy(batch).sum()
        if asked:
            reference.logps(batch)
        loss.backward()
        gradients.append([p.grad for p in policy.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_hidden_states_and_output_weights_are_the_start_s():
    """Together they give its log-probs, also where the output layer is trained."""
    from tunesmith.model.head import folded, target_logps

    policy, _ = make_policy(full.attach(tiny_model()).model)
    batch = batch_of(policy)
    reference = Reference(policy)
    began = reference.logps(batch)
    train(policy, batch, 3)
    hidden, head = reference.hidden(batch), reference.head()
    assert torch.allclose(target_logps(*folded(hidden, head), batch.target_ids, None), began, atol=1e-6)
    assert not torch.equal(head.weight, policy.head.weight)
    assert reference.checksum() != Reference(policy).checksum()


def test_hidden_states_kept_for_others_stay():
    policy, _ = make_policy(with_lora(tiny_model()))
    policy.keep_hidden = True
    batch = batch_of(policy)
    reference = Reference(policy)
    policy(batch)
    reference.logps(batch)
    assert policy.keep_hidden
    assert policy.take_hidden().requires_grad


def test_what_routers_noted_for_the_step_stays():
    policy, _ = make_policy(full.attach(tiny_model("mixtral", output_router_logits=True)).model)
    policy.train()
    batch = batch_of(policy)
    reference = Reference(policy)
    policy(batch)
    wanted = policy.take_auxiliary()
    policy(batch)
    reference.logps(batch)
    assert torch.equal(policy.take_auxiliary(), wanted)


def test_an_exception_inside_leaves_the_policy_as_it_was():
    policy, _ = make_policy(with_lora(tiny_model()))
    batch = batch_of(policy)
    reference = Reference(policy)
    train(policy, batch, 1)
    before = [p.clone() for p in policy.parameters()]
    with pytest.raises(KeyError), reference.start():
        raise KeyError
    assert policy.training
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), before, strict=True))
