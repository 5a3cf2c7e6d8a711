"""A tokenizer of single letters, whose masks can be written down by hand, and a writer of data files."""

import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunesmith.data.detect import convert
from tunesmith.data.formats._common import RowError
from tunesmith.data.records import Origin
from tunesmith.errors import InputError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'][0] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>a\\n' }}{% endif %}"
)


def letters(template: str = CHATML, known: str = "abcdefghijklmnopqrstuvwxyz \n:<>/|_?") -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a character; what it does not know becomes <unk>."""
    specials = ["<eos>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate(known)} | {"<unk>": 99}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens([AddedToken(t, special=True) for t in specials])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer():
    """The function that makes a tokenizer of single letters with a chat template."""
    return letters


@pytest.fixture(scope="session")
def tokenizer():
    return letters()


@pytest.fixture
def write(tmp_path):
    """Write rows as JSONL, or text as it is, to a file of that name; return its path as a string."""

    def _write(name: str, content) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".json"):
            path.write_text(json.dumps(content))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return str(path)

    return _write


@pytest.fixture
def stand_in(monkeypatch):
    """Let a tokenizer stand for the model of any name, which has no config."""
    from tunesmith.model import loading

    def no_config(source):
        raise InputError("no config")

    def stand(tokenizer):
        monkeypatch.setattr(loading, "resolve", lambda model: loading.ModelSource(model))
        monkeypatch.setattr(loading, "load_config", no_config)
        monkeypatch.setattr(loading, "load_tokenizer", lambda source: (tokenizer, []))

    return stand


@pytest.fixture
def refuses():
    """refuses(name, row, field, kind, sentence): the row is refused so, by field and kind, under its file and number."""

    def check(name, row, field, kind, sentence):
        with pytest.raises(RowError) as e:
            convert(row, Origin("data.jsonl", 7), name, stated=True)
        assert (e.value.field, e.value.kind) == (field, kind)
        assert str(e.value).startswith("data.jsonl, row 7: ")
        assert sentence in str(e.value)

    return check
