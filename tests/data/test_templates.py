"""Real chat templates: our process renders as transformers does, and what is scored equals a derivation of its own.

Three oracles: transformers' rendering; answers written down by hand for each family, found in that rendering as strings; and
the marks ({% generation %}) that the authors of TRL's training templates put around what is to be learnt.
"""

import importlib.util
import json
import re
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from builders import GEMMA_LIKE
from tunesmith.data.layout import chat_text, end_tokens, lay_out
from tunesmith.data.records import Chat, Origin
from tunesmith.data.render import render
from tunesmith.errors import InputError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Says the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(*answers, system=None):
    messages = [say("system", system)] if system else []
    for i, answer in enumerate(answers):
        messages += [say("user", f"question {i}?"), say("assistant", answer)]
    return messages


SHAPES = {
    "one turn": talk("qa0 Yes. az0"),
    "system": talk("qa0 Yes. az0", system="Be brief."),
    "three turns": talk("qa0 Yes. az0", "qa1 No. az1", "qa2 Who? az2", system="Be brief."),
    "one letter": talk("Q"),
    "spaces at the ends": talk("  qa0 Yes. az0 ", " qa1 No. az1  "),
    "line breaks at the ends": talk("\nqa0 Yes.\n\naz0\n\n", "\n\nqa1\tNo. az1\n"),
    "Unicode": talk("qa0 👩‍👩‍👧‍👦 e\u0301 日本語 عربى az0", "qa1 \u2028 naïve 🇨🇭 az1"),
    "markers in the answer": talk("qa0 <|im_start|>user\nHi<|im_end|> az0", "qa1 assistant\n<|assistant|> </s> az1"),
    "code": talk("qa0 {{ x }} {% for %} {# c #}\n    indented\n```az0"),
    "the same answer twice": talk("qa same az", "qa same az"),
    "an answer that was asked": [say("user", "qa0 az0"), say("assistant", "qa0 az0")],
    "reasoning": [
        say("user", "Sum?"),
        say("assistant", "qa0 Four. az0", reasoning_content="qr0 two and two rz0"),
        say("user", "And?"),
        say("assistant", "qa1 Five. az1", reasoning_content="qr1 one more rz1"),
    ],
    "tools": [
        say("system", "Be brief."),
        say("user", "Weather?"),
        say("assistant", "qa0 Let me look. az0", tool_calls=[CALL]),
        say("tool", "qt0 rain tz0", name="get_weather"),
        say("assistant", "qa1 Rain. az1"),
    ],
}


def trained(messages):
    return [m["role"] == "assistant" for m in messages]


# -- answers by hand: what the model is to write, after the prompt it is given


def plain(end, trim=False, before=""):
    """A family whose answer is `before`, what is said (trimmed or not) and `end`; it knows neither reasoning nor tools."""
    return lambda m: before + (m["content"].strip() if trim else m["content"]) + end


def chatml_calls(m):
    calls = "".join(
        '\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
        for _ in m.get("tool_calls", [])
    )
    return m["content"] + calls + "<|im_end|>"


def thinking(m):
    """Qwen3: a block for reasoning before every last answer, empty where there is none."""
    reasoning = m.get("reasoning_content", "").strip("\n")
    return f"<think>\n{reasoning}\n</think>\n\n" + chatml_calls({**m, "content": m["content"].lstrip("\n")})


def after_empty_block(m):
    """minimind: its prompt writes the empty block, so an answer without reasoning begins after it."""
    answer = thinking(m)
    return (
        answer.removeprefix("<think>\n\n</think>\n\n") if "reasoning_content" not in m else answer[len("<think>\n") :]
    )


FAMILIES = {  # the answers; and what the template itself does not take
    "qwen2.5": (chatml_calls, ()),
    "qwen3": (thinking, ()),
    "phi-4-base": (plain("<|im_end|>"), ("tools",)),
    "phi-4-mini": (plain("<|end|><|endoftext|>"), ("tools",)),
    "gpt-oss": (plain("<|end|>", before="<|message|>"), ("tools", "reasoning")),
    "phi-3-mini": (lambda m: m["content"] + "<|end|>\n" + "<|endoftext|>", ("tools",)),
    "minimind": (after_empty_block, ()),
    "gemma": (plain("<end_of_turn>", trim=True), ("tools",)),
    "llama3": (plain("<|eot_id|>", trim=True), ("tools",)),
    "mistral": (plain("</s>", before=" "), ("tools", "system", "three turns")),
}
OWN = {  # of known behaviour, written here
    "gemma": GEMMA_LIKE,
    "llama3": (
        "{% for m in messages %}{% set content = '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' %}"
        "{% set content = content + m.content | trim + '<|eot_id|>' %}"
        "{% if loop.first %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
        "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    ),
}
ENDS = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|return|>", "<end_of_turn>", "<|eot_id|>", "</s>"]
TOKENIZERS = ("gpt2", "llama2", "qwen2.5-hf-rebuilt", "llama3-hf-rebuilt", "minimind", "mistral-v0.2-hf", "phi-3-mini")


@lru_cache(maxsize=2)
def loaded(folder: Path):
    """A real tokenizer that knows all ends of turns as special tokens."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ENDS})
    return tokenizer


def source(shared: Path, family: str) -> str:
    """The family's template, as its authors published it where it is there."""
    if family in OWN:
        return OWN[family]
    folder = shared / "chat_templates" / family
    folder = folder if folder.is_dir() else shared / "tokenizers" / family
    file = folder / "chat_template.jinja"
    return (
        file.read_text()
        if file.is_file()
        else json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    )


def tokens_of(text: str, spans: list[tuple[int, int]], tokenizer) -> tuple[list[int], list[bool]]:
    """The text's ids, and which stand for a character of a span. A character between two tokens belongs to the later one."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    wanted = {c for start, end in spans for c in range(start, end)}
    mask, owned = [], 0
    for start, end in encoding["offset_mapping"]:
        mask.append(not wanted.isdisjoint(range(min(start, owned), end)))
        owned = max(owned, end)
    mask[0] = False
    return encoding["input_ids"], mask


def by_hand(family: str, messages, tools, tokenizer) -> list[tuple[list[int], list[bool]]]:
    """Each example's ids and mask, from transformers' rendering and the answers as strings."""
    answers, _ = FAMILIES[family]
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]

    def whole(k):
        return tokenizer.apply_chat_template(messages[: k + 1], tools=tools, tokenize=False)

    def places(text, which):
        """From the end backwards, for what is said last is the answer where a question says the same."""
        found, at = [], len(text)
        for k in reversed(which):
            start = text.rindex(answers(messages[k]), 0, at)
            found.append((start, start + len(answers(messages[k]))))
            at = start
        return found[::-1]

    try:
        last = whole(turns[-1])
        spans = places(last, turns)
        if all(last[:end] == whole(k)[:end] for k, (_, end) in zip(turns, spans, strict=True)):
            return [tokens_of(last, spans, tokenizer)]
    except (
        ValueError
    ):  # an earlier answer does not stand in the whole as the model is to write it: history is rewritten
        pass
    return [tokens_of(whole(k), places(whole(k), [k]), tokenizer) for k in turns]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*TOKENIZERS[:3], *(pytest.param(n, marks=pytest.mark.slow) for n in TOKENIZERS[3:])])
def test_what_is_scored_equals_what_is_derived_by_hand(shared, name, family):
    tokenizer = loaded(shared / "tokenizers" / name)
    tokenizer.chat_template = source(shared, family)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>" if family == "mistral" else "<|endoftext|>"
    for shape, messages in SHAPES.items():
        if shape in FAMILIES[family][1]:
            continue
        tools = TOOLS if shape == "tools" else None
        record = Chat(messages, trained(messages), Origin("d.jsonl", 1), tools)
        examples, _ = render([record], tokenizer)
        wanted = by_hand(family, messages, tools, tokenizer)
        assert len(examples) == len(wanted), shape
        for i, (ids, mask) in enumerate(wanted):
            part = slice(examples.offsets[i], examples.offsets[i + 1])
            assert examples.ids[part].tolist() == ids, shape
            assert np.flatnonzero(examples.scored[part]).tolist() == np.flatnonzero(mask).tolist(), shape


@pytest.mark.parametrize(
    ("family", "shape", "why"),
    [
        ("nvidia-mistral", "one turn", "ends no answer with a special token"),
        ("gpt-oss", "tools", "refuses this conversation"),
        ("phi-4-base", "tools", None),
        (
            "mistral",
            "system",
            r"refuses this conversation \(Conversation roles must alternate\); its roles are system, user",
        ),
    ],
)
def test_what_a_template_does_not_take_is_refused_by_name_or_said(shared, family, shape, why):
    tokenizer = loaded(shared / "tokenizers" / "gpt2")
    tokenizer.chat_template = source(shared, family)
    record = Chat(SHAPES[shape], trained(SHAPES[shape]), Origin("d.jsonl", 1), TOOLS if shape == "tools" else None)
    if why is None:
        examples, notices = render([record], tokenizer)
        assert any("tool calls that the chat template does not write" in n for n in notices)
        said = tokenizer.decode(examples.ids[examples.scored].tolist())
        assert "az1" in said
        assert "az0" not in said
    else:
        with pytest.raises(InputError, match=why):
            render([record], tokenizer)


# -- templates that many models share, with the marks of those who train on them


def trl_templates(only: str = "") -> list[Path]:
    found = importlib.util.find_spec("trl")
    return sorted((Path(found.origin).parent / "chat_templates").glob(f"*{only}.jinja")) if found else []


class Named:
    """What sandbox and layout ask of a tokenizer, without one."""

    name_or_path, chat_template = "named", None
    special_tokens_map = {"bos_token": "<|BOS|>", "eos_token": "<|EOS|>", "pad_token": "<|PAD|>"}  # noqa: RUF012

    def __init__(self, template):
        self.template = template

    def get_chat_template(self, template, tools):
        return template or self.template


def skip_older_oracle(name):
    """Older transformers show these templates a turn's reasoning under one name only; ours shows all three, whatever is installed."""
    if name.startswith(("gptoss", "lfm2_2_5")) and tuple(map(int, version("transformers").split(".")[:2])) < (5, 23):
        pytest.skip("the oracle is the rendering of transformers 5.23")


@pytest.mark.parametrize("file", trl_templates(), ids=lambda f: f.stem)
def test_our_process_renders_as_transformers_does(file):
    skip_older_oracle(file.stem)
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer = Named(file.read_text())
    for shape, messages in SHAPES.items():
        tools = TOOLS if shape == "tools" else None
        for prompt in (False, True):
            try:
                (wanted,), _ = render_jinja_template(
                    [messages],
                    tools=tools,
                    chat_template=tokenizer.template,
                    add_generation_prompt=prompt,
                    **tokenizer.special_tokens_map,
                )
            except Exception as error:
                reason = re.escape(str(error).strip().splitlines()[0].rstrip("."))
                with pytest.raises(InputError, match=reason):
                    chat_text(messages, tools, tokenizer, "row", prompt)
                continue
            assert chat_text(messages, tools, tokenizer, "row", prompt) == wanted, (shape, prompt)


def marked(file: Path, messages, tools) -> tuple[str, list[tuple[int, int]]]:
    """transformers' rendering, and what stands between its generation marks; those that touch are one."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), (marks,) = render_jinja_template(
        [messages],
        tools=tools,
        chat_template=file.read_text(),
        return_assistant_tokens_mask=True,
        **Named.special_tokens_map,
    )
    spans: list[list[int]] = []
    for start, end in marks:
        if spans and spans[-1][1] == start:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    return text, [(start, end) for start, end in spans]


@pytest.mark.parametrize("file", trl_templates("_training"), ids=lambda f: f.stem)
def test_the_authors_own_marks_agree(file):
    """Their marks may take in what the prompt already gives (we score what is written after it) and a line break at the end."""
    skip_older_oracle(file.stem)
    source_ = file.read_text()
    ends = tuple(sorted({*re.findall(r"<[|｜][^<>\n ]{1,30}[|｜]>|<end_of_\w+>|<turn\|>", source_), "<|EOS|>"}))
    ends = tuple(end for end in ends if "tool" not in end and "think" not in end)
    for shape, messages in SHAPES.items():
        tools = TOOLS if shape == "tools" else None
        chat = Chat(messages, trained(messages), Origin("d.jsonl", 1), tools)
        try:
            (layouts,) = lay_out([chat], Named(source_), ends)
        except InputError:
            continue
        for layout in layouts:
            for k in [span[3] for span in layout.spans]:
                text, marks = marked(file, messages[: k + 1], tools)
                start, end, closed, _ = next(span for span in layout.spans if span[3] == k)
                assert closed or messages[k].get("tool_calls"), shape  # some leave a call open until its result
                assert layout.text[:end] == text[:end], shape
                # The mark of this answer is the last; an earlier one may reach up to it without a gap.
                mark_start, mark_end = marks[-1]
                assert mark_start <= start, shape
                assert text[end:mark_end].strip() == "", shape
                prompt = chat_text(messages[:k], tools, Named(source_), "row", prompt=True)
                assert (
                    text[mark_start:start] == ""
                    or prompt.endswith(text[mark_start:start])
                    or prompt[:start] == text[:start]
                ), shape


def test_an_answer_that_the_template_does_not_write_is_refused(make_tokenizer):
    """Templates for images go through an answer's parts; of a string they write nothing."""
    parts = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role[0] + ':' }}{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>a:' }}{% endif %}"
    )
    record = Chat([say("user", "who"), say("assistant", "yes")], [False, True], Origin("d.jsonl", 3))
    with pytest.raises(InputError, match=r"does not write what the answers say \(d.jsonl, row 3\)"):
        render([record], make_tokenizer(parts))


def test_a_prompt_that_is_no_prefix_does_not_eat_the_answers_first_letters(make_tokenizer):
    """The prompt opens a block for reasoning; an answer that begins with the block's letters is scored from its first."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'][0] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>a\\n<think>\\n' }}{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    for answer in ("<thing>", "<think> so", "yes"):
        (layouts,) = lay_out([Chat(talk(answer), [False, True], Origin("d", 1))], tokenizer, end_tokens(tokenizer))
        ((start, end, closed, turn),) = layouts[0].spans
        assert layouts[0].text[start:end] == answer + "<|im_end|>"
        assert (closed, turn) == (True, 1)
