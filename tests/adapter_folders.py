"""Adapters of many kinds with random numbers, saved as PEFT does; for the tests of many adapters and of merging."""

from pathlib import Path

import torch


def base(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapter(tiny_folder, folder: Path, seed: int, kind: str = "lora", **settings) -> str:
    """Save a random adapter on the tiny model; return its folder."""
    import peft

    torch.manual_seed(seed)
    given = {"task_type": "CAUSAL_LM", **settings}
    if kind == "lora":
        config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **given})
    else:
        config = {"ia3": peft.IA3Config, "prompt": peft.PromptTuningConfig}[kind](**given)
    model = peft.get_peft_model(base(tiny_folder), config)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, mean=float(kind == "ia3"), std=0.2)
    model.peft_config["default"].base_model_name_or_path = str(tiny_folder)
    model.save_pretrained(folder)
    return str(folder)


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(40).view(2, 20)).logits


def plain_peft(folder, adapter):
    from peft import PeftModel

    return PeftModel.from_pretrained(base(folder), adapter)
