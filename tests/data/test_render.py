"""What is scored, derived by hand on a tokenizer of single letters, and on real tokenizers and templates."""

import io
import time
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from builders import GEMMA_LIKE
from tunesmith.data import columns, coverage
from tunesmith.data import render as render_module
from tunesmith.data.layout import end_tokens, lay_out
from tunesmith.data.records import Chat, Origin, Preference, Prompt, Text, Verdict
from tunesmith.data.render import render
from tunesmith.data.sources import load
from tunesmith.data.tally import Tally, where
from tunesmith.errors import InputError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'][0] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>a\\n' }}{% endif %}"
)


def chat(*turns, trained=None, row=1, tools=None, **fields):
    """A conversation of strings, user and assistant in turn; roles may be given as (role, content)."""
    messages = [
        {"role": t[0], "content": t[1]}
        if isinstance(t, tuple)
        else {"role": ("user", "assistant")[i % 2], "content": t}
        for i, t in enumerate(turns)
    ]
    flags = trained or [m["role"] == "assistant" for m in messages]
    return Chat(messages, flags, Origin("d.jsonl", row), tools)


def scored(examples, tokenizer):
    """The scored text of each example."""
    out = []
    for i in range(len(examples)):
        part = slice(examples.offsets[i], examples.offsets[i + 1])
        out.append(tokenizer.decode(examples.ids[part][examples.scored[part]].tolist()))
    return out


def whole(examples, tokenizer, i=0):
    return tokenizer.decode(examples.ids[examples.offsets[i] : examples.offsets[i + 1]].tolist())


def test_mask_by_hand(tokenizer):
    examples, notices = render([chat("hi", "yo")], tokenizer)
    # [S] u \n h i [E] \n [S] a \n y o [E] \n: the answer and its end of turn, not the line break after it
    assert examples.lengths.tolist() == [14]
    assert np.flatnonzero(examples.scored).tolist() == [10, 11, 12]
    assert notices == []
    assert examples.ids.dtype == np.int32
    assert list(examples.origins) == [Origin("d.jsonl", 1)]


def test_every_trained_answer_and_only_those(tokenizer):
    record = chat("a", "b", "c", "d", "e", "f", trained=[False, True, False, False, False, True])
    examples, _ = render([record], tokenizer)
    assert scored(examples, tokenizer) == ["b<|im_end|>f<|im_end|>"]


def test_what_follows_the_last_trained_answer_is_left_out(tokenizer):
    record = chat("a", "b", "c", "d", "e", trained=[False, True, False, False, False])
    examples, _ = render([record], tokenizer)
    assert whole(examples, tokenizer).endswith("b<|im_end|>\n")


def test_examples_lie_end_to_end_and_know_their_record(tokenizer):
    examples, notices = render(
        [chat("a", "b"), chat("a", "", trained=[False, False], row=2), chat("c", "dd", row=3)], tokenizer
    )
    assert examples.offsets.tolist() == [0, 12, 25]
    assert examples.record.tolist() == [0, 2]
    assert notices == [
        "1 row left out: nothing to score (no answer, an empty one, or none that is trained) (d.jsonl, row 2)"
    ]


REWRITES = (  # earlier answers lose what stands in angle brackets, as reasoning does
    "{% for m in messages %}{{ '<|im_start|>' + m['role'][0] + '\\n' + "
    "(m['content'] if loop.last or m['role'] == 'user' else m['content'].split('>')[-1]) + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>a\\n' }}{% endif %}"
)


def test_a_template_that_rewrites_history_gives_one_example_per_answer(make_tokenizer):
    tokenizer = make_tokenizer(REWRITES)
    examples, notices = render([chat("a", "<x>b", "c", "<y>d")], tokenizer)
    assert scored(examples, tokenizer) == ["<x>b<|im_end|>", "<y>d<|im_end|>"]
    assert examples.record.tolist() == [0, 0]
    assert "<x>" not in whole(examples, tokenizer, 1)
    assert notices == ["1 conversation makes one example per answer: the chat template rewrites history"]


def test_a_generation_prompt_that_is_no_prefix_falls_back_to_the_common_one(make_tokenizer):
    template = CHATML.replace("'<|im_start|>a\\n' }}{% endif", "'<|im_start|>a\\n<think>' }}{% endif")
    tokenizer = make_tokenizer(template)
    examples, _ = render([chat("a", "b")], tokenizer)
    assert scored(examples, tokenizer) == ["b<|im_end|>"]


def test_an_end_marker_that_is_no_special_token_is_refused(make_tokenizer):
    tokenizer = make_tokenizer(CHATML.replace("<|im_end|>", "<end>"))
    with pytest.raises(InputError, match="ends no answer with a special token"):
        render([chat("a", "b")], tokenizer)


def test_a_set_without_answers_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"nothing would be scored: no row has an answer .*d.jsonl, row 1"):
        render([chat("a", "b", trained=[False, False])], tokenizer)
    with pytest.raises(InputError, match="no rows"):
        render([], tokenizer)


def test_too_long_is_cut_or_dropped_counted_and_said(tokenizer):
    records = [chat("hi", "yo", row=1), chat("hi", "yoyoyo", row=2), chat("hihihihihi", "yo", row=3)]
    examples, notices = render(records, tokenizer, max_length=14)
    assert examples.lengths.tolist() == [14, 14]
    assert scored(examples, tokenizer) == ["yo<|im_end|>", "yoyo"]
    assert notices == [
        "1 row cut at max_length 14 (d.jsonl, row 2)",
        "1 row has an answer that begins beyond max_length 14 and is left out (d.jsonl, row 3)",
    ]


def test_cutting_every_answers_end_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"no answer's end is left within max_length 12"):
        render([chat("hi", "yoyo")], tokenizer, max_length=12)
    with pytest.raises(InputError, match=r"no answer is left within max_length 5"):
        render([chat("hi", "yoyo")], tokenizer, max_length=5)


def test_a_conversation_that_begins_with_an_answer(tokenizer):
    record = chat(("assistant", "hey"), ("user", "a"), ("assistant", "b"))
    examples, notices = render([record], tokenizer)
    assert scored(examples, tokenizer) == ["b<|im_end|>"]
    assert notices == ["1 row begins with an answer to nothing, which is not scored (d.jsonl, row 1)"]


def test_a_template_that_refuses_is_one_sentence_with_the_row(make_tokenizer):
    tokenizer = make_tokenizer(
        "{{ raise_exception('System role not supported') if messages[0].role == 'system' }}" + CHATML
    )
    with pytest.raises(
        InputError, match=r"d.jsonl, row 9: .*\(System role not supported\); its roles are system, user"
    ):
        render([chat(("system", "s"), ("user", "a"), ("assistant", "b"), row=9)], tokenizer)


def test_tool_calls_the_template_leaves_out_are_not_scored(tokenizer):
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": "b"},
    ]
    record = Chat(messages, [False, True, False, True], Origin("d.jsonl", 1))
    examples, notices = render([record], tokenizer)
    assert scored(examples, tokenizer) == ["b<|im_end|>"]
    assert "hold" not in notices[0]
    assert "has tool calls that the chat template does not write" in notices[0]


def test_text_is_scored_after_its_first_token(tokenizer):
    examples, _ = render([Text("abc", Origin("t", 1))], tokenizer)
    assert whole(examples, tokenizer) == "abc<eos>"
    assert examples.scored.tolist() == [False, True, True, True]


def test_text_windows_score_each_token_once(tokenizer):
    examples, notices = render([Text("abcdefgh", Origin("t", 1))], tokenizer, max_length=4)
    assert [whole(examples, tokenizer, i) for i in range(3)] == ["abcd", "defg", "gh<eos>"]
    assert scored(examples, tokenizer) == ["bcd", "efg", "h<eos>"]
    assert notices == ["1 row is longer than max_length 4 and cut into windows (t, row 1)"]


def test_a_chat_read_whole(tokenizer):
    examples, _ = render([chat("a", "b")], tokenizer, score="all")
    assert examples.scored.tolist() == [False] + [True] * 11


def test_characters_the_vocabulary_lacks_are_named_with_rows(tokenizer):
    records = [chat("a" * 40, "b" * 40, row=1), chat("a[", "b]" + "c" * 40, row=2), chat("a", "[", row=3)]
    _, notices = render(records, tokenizer)
    assert notices[0].startswith("the model's vocabulary cannot spell [ ]: ")
    assert "in 2 of 3 rows (67%; d.jsonl, rows 2, 3)" in notices[0]
    with pytest.raises(InputError, match=r"cannot spell Q: 50.00% of all characters.*larger vocabulary"):
        render([Text("QaQb", Origin("t", 1))], tokenizer)


ASK, YES, NO = ([{"role": r, "content": c}] for r, c in (("user", "a"), ("assistant", "yes"), ("assistant", "no")))


def test_other_kinds_are_rendered_as_the_conversations_they_hold(tokenizer):
    records = [
        Preference(ASK, [YES, NO], Origin("d.jsonl", 1)),
        Verdict(ASK, NO, False, Origin("d.jsonl", 2)),
        Prompt(ASK, Origin("d.jsonl", 3), "yes"),
        Prompt(ASK, Origin("d.jsonl", 4)),
    ]
    examples, notices = render(records, tokenizer)
    assert scored(examples, tokenizer) == ["yes<|im_end|>", "no<|im_end|>", "no<|im_end|>", "yes<|im_end|>"]
    assert examples.record.tolist() == [0, 0, 1, 2]
    assert [str(o) for o in examples.origins] == [f"d.jsonl, row {i}" for i in (1, 2, 3, 4)]
    assert notices == [
        "1 row left out: nothing to score (no answer, an empty one, or none that is trained) (d.jsonl, row 4)"
    ]


class Lazy(Sequence):
    """Records that are made as they are asked for: a set larger than memory."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(self.n))]
        if i >= self.n:
            raise IndexError(i)
        if i % 3 == 2:
            return Text("some text " * (i % 7 + 2), Origin("t", i))
        return chat(f"ask {i % 10 * 'q'}", "so " * (1 + i % 11), row=i)


def test_what_streams_through_files_is_what_memory_holds(tokenizer, monkeypatch, tmp_path):
    expected, notices = render(list(Lazy(700)), tokenizer, 40)
    monkeypatch.setattr(columns, "KEPT", 100)
    examples, said = render(Lazy(700), tokenizer, 40, folder=tmp_path / "waiting")
    for name in ("ids", "scored", "offsets", "record"):
        assert np.array_equal(getattr(examples, name), getattr(expected, name))
        assert getattr(examples, name).dtype == getattr(expected, name).dtype
    assert list(examples.origins) == list(expected.origins)
    assert examples.origins[5] == Origin("t", 5)
    assert said == notices
    base = examples.ids
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    assert list((tmp_path / "waiting").iterdir()) == []  # the files have no name, and go with the arrays


def test_memory_does_not_grow_with_the_rows(tokenizer, monkeypatch):
    monkeypatch.setattr(columns, "KEPT", 10_000)
    monkeypatch.setattr(coverage, "_CHUNK", 10_000)
    monkeypatch.setattr(render_module, "_BATCH", 16)  # one batch or two are there, as the threads have it
    render(Lazy(300), tokenizer, 40)
    peaks = []
    for n in (300, 2700):
        tracemalloc.start()
        render(Lazy(n), tokenizer, 40)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2400 * 64  # 16 bytes an example stay, and an array's growth; a row's objects are 3,000


def test_a_full_disk_is_one_sentence(tokenizer, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(columns, "KEPT", 10)
    monkeypatch.setattr(columns, "_temporary", lambda folder: Full())
    with pytest.raises(
        InputError, match=r"do not fit on the disk \(No space left on device\); make room, or set TUNESMITH"
    ):
        render(Lazy(10), tokenizer)


def test_rows_that_something_happened_to_are_counted_not_kept():
    tally = Tally()
    for row in (1, 1, 2, 3, 4, 5, 6, 7):
        tally.add(Origin("a", row))
    tally.add(Origin("b", 1))
    assert str(tally) == "a, rows 1, 2, 3, 4, 5 and 3 more"
    assert (tally.n, len(tally.first)) == (8, 5)
    assert where([Origin("a", 4)]) == "a, row 4"


# -- real tokenizers; their templates are compared in test_templates.py


def test_trimming_merging_and_bos_in_the_template(shared):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / "llama3-hf-rebuilt")
    tokenizer.chat_template = GEMMA_LIKE
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    record = chat(("system", "S"), ("user", " a "), ("assistant", "\n b \n"), ("user", "c"), ("assistant", "d"))
    examples, _ = render([record], tokenizer)
    assert scored(examples, tokenizer) == ["b<end_of_turn>d<end_of_turn>"]
    assert (examples.ids == tokenizer.bos_token_id).sum() == 1
    with pytest.raises(InputError, match=r"row 4: .*roles must alternate"):
        render([chat(("user", "a"), ("user", "b"), ("assistant", "c"), row=4)], tokenizer)


def test_bos_and_eos_around_text_follow_the_tokenizer(shared):
    transformers = pytest.importorskip("transformers")
    for name, first in (("llama3-hf-rebuilt", "<|begin_of_text|>"), ("qwen2.5-hf-rebuilt", None)):
        tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
        examples, _ = render([Text("One two", Origin("t", 1))], tokenizer)
        assert whole(examples, tokenizer) == (first or "") + "One two" + tokenizer.eos_token


@pytest.mark.parametrize("name", ["qwen2.5-hf-rebuilt", "minimind"])
def test_real_tool_calls_are_scored(shared, name):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    file = shared / "data" / "instruction" / "llamafactory" / "glaive_toolcall_en_demo.json"
    loaded = load(str(file))
    examples, notices = render(loaded.records[:1], tokenizer)
    assert not any("tool calls" in n for n in notices)
    assert '{"name": "search_recipes", "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]}}' in "".join(
        scored(examples, tokenizer)
    )


def test_every_real_answer_is_found_whole(shared):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / "qwen2.5-hf-rebuilt")
    loaded = load(str(shared / "data" / "instruction" / "rasbt" / "instruction-data.json"))
    examples, _ = render(loaded.records, tokenizer)
    for text, index in zip(scored(examples, tokenizer), examples.record, strict=True):
        assert text == loaded.records[index].messages[-1]["content"] + "<|im_end|>"


def test_the_small_real_model(shared):
    from tunesmith.model.loading import ModelSource, load_tokenizer

    tokenizer, _ = load_tokenizer(ModelSource(str(shared / "models" / "tinystories-656k-llama")))
    loaded = load(str(shared / "data" / "instruction" / "stanford_alpaca_5000"))
    start = time.perf_counter()
    examples, notices = render(loaded.records, tokenizer, 512)
    assert time.perf_counter() - start < 20  # about 1 s on one core
    assert "cannot spell" in notices[0]
    assert all(c in notices[0] for c in "[]=")
    assert len(examples) == 4997  # two answers are empty, one begins beyond 512 tokens
    (layouts,) = lay_out(loaded.records[:1], tokenizer, end_tokens(tokenizer))
    ((start_at, end, closed, turn),) = layouts[0].spans
    assert layouts[0].text[start_at:end] == " No<|end_story|>"
    assert (closed, turn) == (True, 1)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama2", "llama3-hf-rebuilt", "minimind", "mistral-v0.2-hf", "phi-3-mini", "qwen2.5-hf-rebuilt"]
)
def test_a_span_s_tokens_are_those_that_its_characters_tell(shared, name):
    """Any span of any text: the range asked for at its edges is what going through every token's characters gives."""
    from transformers import AutoTokenizer

    from tunesmith.data.explain import scored
    from tunesmith.data.layout import encode, encode_spans

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    rng = np.random.default_rng(0)
    parts = [
        "word",
        " and",
        "  ",
        "\n\n",
        "日本",
        "🤗",
        "é",
        "e\u0301",
        " x = 3.14;",
        "\t",
        "<|im_end|>",
        "'s",
        "Ω",
        " ",
        "👩‍👩‍👧",
    ]
    texts = ["".join(rng.choice(parts, rng.integers(1, 30))) for _ in range(150)]
    spans = [[(*sorted(rng.integers(0, len(t) + 1, 2).tolist()), True, 0) for _ in range(10)] for t in texts]
    found = encode_spans(texts, spans, tokenizer)
    for wanted, (ids, starts, stops), (same, ranges) in zip(spans, encode(texts, tokenizer), found, strict=True):
        assert ids.tolist() == same.tolist()
        for span, (first, behind) in zip(wanted, ranges, strict=True):
            mask = (starts < span[1]) & (stops > span[0])
            if span[0] < span[1]:
                assert np.flatnonzero(mask).tolist() == list(range(first, behind))
                assert scored([span], starts, stops)[1] == [behind - 1 if behind else len(ids)]
