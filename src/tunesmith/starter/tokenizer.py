"""The starter's tokenizer: byte-level BPE trained on the generator's own text, with a ChatML-like template that knows tools."""

from collections.abc import Iterable
from typing import Any

VOCABULARY = 2304
PAD, END, TURN_START, TURN_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [PAD, END, TURN_START, TURN_END]
MARKS = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]  # one token each, but part of what is said

# Words keep the space before them, digits stand alone: the split of GPT-4's family with single digits.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Tools are shown as one line each, "- weather(city: string): ...", calls as JSON between tags; a tool's result is a turn of its own.
CHAT_TEMPLATE = r"""{%- if tools or (messages and messages[0]['role'] == 'system') -%}
<|im_start|>system
{% if messages[0]['role'] == 'system' -%}
{{ messages[0]['content'] + ('\n' if tools else '') }}
{%- endif -%}
{%- if tools -%}
Tools:
{%- for tool in tools -%}
{%- set f = tool['function'] if tool['function'] is defined else tool -%}
{{ '\n- ' + f['name'] }}(
{%- for key, value in ((f['parameters'] or {})['properties'] or {}).items() -%}
{{ key }}: {{ value['type'] }}{{ '' if loop.last else ', ' }}
{%- endfor -%}
){{ ': ' + f['description'] if f['description'] else '' }}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<|im_start|>assistant
{% if message['content'] %}{{ message['content'] }}{% endif -%}
{%- for call in (message['tool_calls'] or []) -%}
{%- set f = call['function'] if call['function'] is defined else call -%}
{%- set arguments = f['arguments'] if f['arguments'] is string else f['arguments'] | tojson -%}
<tool_call>{"name": "{{ f['name'] }}", "arguments": {{ arguments }}}</tool_call>
{%- endfor -%}
<|im_end|>
{% elif message['role'] == 'tool' -%}
<|im_start|>tool
<tool_response>{{ message['content'] }}</tool_response><|im_end|>
{% elif not (message['role'] == 'system' and loop.first) -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """Return a transformers tokenizer (at most `vocabulary` tokens, special ones first) trained on the texts."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(MARKS),
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, additional_special_tokens=SPECIAL[2:4],
        model_max_length=512, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
