"""Names come from file names, and a wrong one is answered with the nearest."""

import pytest

from tunesmith import registry
from tunesmith.errors import InputError


def test_names_are_the_public_files():
    adapters = registry.names("model.adapters")
    assert {"full", "lora", "lora+", "p-tuning"} < set(adapters)
    assert not any(name.startswith("_") for name in adapters)
    assert "_common" not in registry.names("data.formats")


def test_load_imports_the_module_or_names_the_nearest():
    assert registry.load("training.objectives", "sft").scores == "answers"
    with pytest.raises(InputError, match=r'there is no metric "perplexty". Did you mean "perplexity"'):
        registry.load("evaluation.metrics", "perplexty")
