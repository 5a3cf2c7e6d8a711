"""A model made ready to answer, and the verb `generate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.data.records import Origin, Text
from tunesmith.errors import InputError
from tunesmith.model import loading
from tunesmith.model import quantize as quantization

if TYPE_CHECKING:
    from tunesmith.data.sources import Loaded

DEVICES = ("cpu", "cuda", "mps")
SMALL = 50_000_000  # parameters up to which fp32 costs nothing that is noticed


@dataclass(frozen=True)
class Checked:
    """A model whose name, tokenizer and weight files were found good; no weight is loaded yet."""

    source: loading.ModelSource
    tokenizer: Any
    device: str
    notices: list[str]

    def load(self) -> Any:
        """Return the model on its device in eval mode, in the checkpoint's own dtype; float32 for small ones on a CPU."""
        model = loading.load_model(self.source, held_in(self.source, self.device), device=self.device)
        return model.to(self.device).eval().requires_grad_(False)


def held_in(source: loading.ModelSource, device: str) -> str:
    """Return the dtype a model answers in: "auto", the checkpoint's own; "float32" for small ones on a CPU."""
    small = device == "cpu" and sum(p.numel() for p in loading.structure(source).parameters()) <= SMALL
    return "float32" if small else "auto"


def check(model: str, adapter: str | None = None, device: str | None = None, quantize: str | None = None) -> Checked:
    """Find a model, its tokenizer and a device (default: an accelerator if there is one); no weight is loaded yet.

    quantize: how the base is held (quantization.Name; None: as the adapter was trained on it).
    """
    source = loading.resolve(model, adapter)
    source = replace(source, quantize=quantization.asked(quantize, source.quantize))
    loading.check_weights(source)
    tokenizer, notices = loading.load_tokenizer(source)
    device = choose_device(device)
    quantization.check(source.quantize, loading.load_config(source), source.base, device, "quantize")
    return Checked(source, tokenizer, device, notices)


def choose_device(device: str | None = None) -> str:
    """Return the device if it is here (default: an accelerator if there is one); InputError with what is here otherwise."""
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device is None:
        device = next(d for d in ("cuda", "mps", "cpu") if present[d])
    if not present.get(device, False):
        known = ", ".join(d for d in DEVICES if present[d])
        raise InputError(f'device "{device}" is not here; this machine has {known}.')
    return device


def generate_text(
    model: str,
    *,
    adapter: str | Sequence[str] | None = None,
    prompt: str | None = None,
    data: Any = None,
    quantize: str | None = None,
    device: str | None = None,
    max_new_tokens: int = 256,
    temperature: float | None = None,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    batch_size: int | None = None,
    seed: int = 0,
    best_of: int | None = None,
    reward: str | None = None,
    told: Callable[[str], None] = lambda said: None,
) -> dict[str, Any]:
    """Answer one prompt, or every row of `data` (a path, hub id, or list of them, as training reads it).

    A row's prompt is all before its last trained assistant turn, or what a prompt, verdict or preference row asks; a row of plain
    text is continued. Returns {"answers": [{"prompt" (the last message asked), "answer", and for rows "file" and "row"}],
    "notices": [sentence]}. Of several adapters (folders or NAME=DIR; "none": the base alone) each answers every prompt, and an answer has
    its "adapter". quantize: as in `check`. Sampling as in tunesmith.model.generate.generate, at temperature 0 unless said.

    best_of: so many answers are sampled (at temperature 1 unless said) and the best by `reward` is given, as
    tunesmith.rewarding.best_of.answer_best says; `told` hears how far it is. InputError for anything wrong, before weights load.
    """
    from tunesmith.data.sources import load
    from tunesmith.model import many
    from tunesmith.model.generate import check_sampling, generate

    if (prompt is None) == (data is None):
        raise InputError("give either a prompt or data with prompts, one of the two.")
    if any("\ud800" <= c <= "\udfff" for c in prompt or ""):  # bytes of another encoding, as Python keeps them
        raise InputError("the prompt is no UTF-8 text; set the terminal to UTF-8, or put the prompt into a file.")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    adapters = many.named(adapter)
    if best_of is not None or reward is not None:
        from tunesmith.rewarding.best_of import answer_best
        from tunesmith.rewarding.candidates import Sampling

        warm = 1.0 if temperature is None else temperature
        sampling = Sampling(max_new_tokens, warm, top_p, top_k, repetition_penalty, stop, seed)
        return answer_best(model, best_of, reward, prompt, data, adapters, quantize, device, sampling, told)
    temperature = temperature or 0.0
    check_sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop, batch_size, seed)
    for folder in adapters.values() or [None]:
        loading.resolve(
            model, folder
        )  # a wrong name is said before data is read, and wrong data before torch is loaded
    loaded = None if data is None else load(data)
    several = many.check_several(model, adapters, device, quantize=quantize)
    asked = {name: _asked(one.tokenizer, prompt, loaded) for name, one in several.choices.items()}
    for name, questions in asked.items():
        _check_lengths(questions, several.choices[name].source)
    ready, answers = several.load(), {}
    for name, questions in asked.items():
        with several.using(ready, name) as tokenizer:
            answers[name] = generate(
                ready,
                tokenizer,
                [question.ids for question in questions],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                repetition_penalty=repetition_penalty,
                stop=stop,
                batch_size=batch_size,
                seed=seed,
            )
    return {"answers": _listed(asked, answers), "notices": several.notices + (loaded.notices if loaded else [])}


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    ids: list[int]
    origin: Origin | None


def _listed(asked: "dict[str, list[_Question]]", answers: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return the answers by question, and of several adapters side by side."""
    listed = []
    for number, question in enumerate(next(iter(asked.values()))):
        for name in asked:
            entry: dict[str, Any] = {"prompt": question.text, "answer": answers[name][number]}
            if len(asked) > 1:
                entry["adapter"] = name
            if question.origin is not None:
                entry |= {"file": question.origin.file, "row": question.origin.row}
            listed.append(entry)
    return listed


def _asked(tokenizer: Any, prompt: str | None, loaded: "Loaded | None") -> list[_Question]:
    """Return what is to be answered, in the order of the rows."""
    from tunesmith.evaluation.items import content_text, make_items
    from tunesmith.model.generate import encode_prompts

    if loaded is None:
        assert prompt is not None
        (ids,) = encode_prompts(tokenizer, [([{"role": "user", "content": prompt}], None)])
        return [_Question(prompt, ids, None)]
    asked = []
    for item in make_items(loaded.records, tokenizer, unanswered=True):
        record = item.record
        if isinstance(record, Text):
            ids = tokenizer(record.text).input_ids
            if ids[-1:] == [tokenizer.eos_token_id]:
                ids.pop()  # some tokenizers write it; nothing comes after it
            asked.append(_Question(record.text, ids, record.origin))
        elif item.prompt:
            (ids,) = encode_prompts(tokenizer, [(item.prompt, record.tools)], [record.origin])
            asked.append(_Question(content_text(item.prompt[-1]), ids, record.origin))
    if not asked:
        raise InputError(f"{', '.join(s.path for s in loaded.sources)} holds no prompt to answer.")
    return asked


def _check_lengths(asked: list[_Question], source: loading.ModelSource) -> None:
    """InputError naming the first prompt that fills the model's context."""
    context = getattr(loading.load_config(source).get_text_config(), "max_position_embeddings", None)
    if context and source.adapter:
        context -= int(loading.adapter_config(source.adapter).get("num_virtual_tokens") or 0)
    for number, question in enumerate(asked, 1):
        if context and len(question.ids) >= context:
            where = str(question.origin) if question.origin else f"prompt {number}"
            size = len(question.ids)
            raise InputError(f"{where}: the prompt has {size} tokens, the model's context is {context}; shorten it.")
