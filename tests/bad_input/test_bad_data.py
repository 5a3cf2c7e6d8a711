"""Bad data: exit code 2, one sentence with the file, the row, the field and the remedy, before any weight is loaded."""

import json
import os
from pathlib import Path

import pytest

ROW = '{"instruction": "red cat", "output": "cat red"}'


def rows(*changed):
    """Two good rows and then the changed ones, as JSON lines."""
    return "\n".join([ROW, ROW, *(r if isinstance(r, str) else json.dumps(r) for r in changed)])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "data.jsonl: the file is empty"),
        (b" \n\n", "data.jsonl: the file is empty"),
        (rows('{"instruction": "a", '), "data.jsonl, row 3: line 3 is broken JSON"),
        (rows("[1, 2]"), "data.jsonl, row 3: the row is a list, expected an object"),
        (rows("NaN"), "data.jsonl, row 3: the row is a number, expected an object"),
        (rows({"instruction": "a"}), 'data.jsonl, row 3: field "output" is missing. The row has: instruction.'),
        (rows({"instruction": "a", "outptu": "b"}), 'field "output" is missing. Did you mean "outptu"?'),
        (rows({"instruction": "a", "output": None}), 'data.jsonl, row 3: field "output" is null, expected a string.'),
        (
            rows({"instruction": "a", "output": 3}),
            'data.jsonl, row 3: field "output" is a number (3), expected a string.',
        ),
        (
            rows({"instruction": ["a"], "output": "b"}),
            'row 3: field "instruction" is a list (["a"]), expected a string.',
        ),
        (
            rows({"text": "a"}),
            "row 3: this row is of the format text (has text) in a file of alpaca rows; put the two in two",
        ),
        (rows({"prompt": "a", "completion": "b"}), "row 3: this row is of the format prompt_completion"),
        ('{"foo": 1}', "row 1: its fields (foo) are those of no known format. Known: "),
        ('{"messages": []}', 'row 1: field "messages" is an empty list'),
        ('{"messages": [{"role": "usr", "content": "a"}]}', 'which is no role. Did you mean "user"?'),
        ('{"messages": [{"role": "user"}]}', 'field "messages[0].content" is missing'),
        ('{"messages": [{"role": "user", "content": "x"}]}', "nothing would be scored"),
        ('{"instruction": "a", "output": " "}', "nothing would be scored"),
        ('{"text": "plain"}', "the objective sft reads chat. Train on plain text with --objective pretrain"),
        (b"\xff\xfe" + ROW.encode("utf-16-le"), "data.jsonl: the file is UTF-16; save it as UTF-8."),
        (b'{"instruction": "a", "output": "\xff"}', "row 1: line 1 is not UTF-8 (byte 0xff); save the file as UTF-8"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "data.jsonl: the file is compressed; unpack it first."),
        (
            ROW.encode("utf-16-le"),
            "data.jsonl: the file is no text (it has zero bytes, as UTF-16 has); save it as UTF-8.",
        ),
        (
            rows('{"instruction": "a", "output": "b", "n": ' + "9" * 5000 + "}"),
            "row 3: line 3 is broken JSON (a number of too",
        ),
        (b"PAR1" + bytes(40), "data.jsonl: the file is Parquet; give it the ending .parquet."),
        (b"PK\x03\x04" + bytes(40), "data.jsonl: the file is a zip archive or an Excel sheet"),
        ("[" * 100_000, "data.jsonl"),
    ],
)
def test_data(rejected, data, words):
    assert words in rejected(data)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "d.csv",
            "instruction,output\na,b,c\n",
            "d.csv, row 1: line 2 has 3 values, the header has 2 (instruction, output)",
        ),
        ("d.csv", "instruction,output\n", "d.csv: the file holds no rows"),
        ("d.json", "3", "d.json: the file holds a number, expected a list of rows"),
        ("d.json", '[{"instruction": "a", "output": "b"}, {"instr', "d.json, row 2: line 1 of the file is broken JSON"),
        ("d.parquet", "PAR1 not", "d.parquet: the file is no readable Parquet"),
        ("d.pkl", "x", "d.pkl is no data file tunesmith reads; known endings: .json, .jsonl"),
        ("d", "x", "d is no data file tunesmith reads; known endings"),
    ],
)
def test_data_of_other_kinds(rejected, name, content, words):
    assert words in rejected(content, name)


def test_places_that_are_no_data_file(rejected, tmp_path):
    assert "there is no data file nofile.jsonl." in rejected(None, "nofile.jsonl")
    Path("empty").mkdir()
    assert "the folder empty holds no data files (.json, .jsonl" in rejected(None, "empty")
    Path("folder.jsonl").mkdir()
    assert "the folder folder.jsonl holds no data files" in rejected(None, "folder.jsonl")
    os.mkfifo("pipe.jsonl")
    assert "pipe.jsonl is a pipe or a device" in rejected(None, "pipe.jsonl")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    assert "loop.jsonl" in rejected(None, "loop.jsonl")
    Path("gone.jsonl").symlink_to("nowhere.jsonl")
    assert "gone.jsonl is a link to nowhere.jsonl, which leads to no file" in rejected(None, "gone.jsonl")
    assert '"nobody/nothing" is no local file' in rejected(None, "nobody/nothing")
    assert "https://•••@x/y.jsonl is an address;" in rejected(None, "https://user:pw@x/y.jsonl")
    assert "a path of data holds a zero byte" in rejected(None, "x\x00y.jsonl")
    assert "there is no data file x\ufffdy.jsonl." in rejected(None, "x\x1by.jsonl")  # nothing acts on the terminal


def test_every_row_too_long(rejected):
    data = json.dumps({"instruction": "word " * 200, "output": "b"})
    assert "no answer is left within max_length 64" in rejected(data, train={"max_length": 64})


def test_a_vocabulary_that_cannot_spell_the_data(rejected, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from builders import CHATML

    Path("narrow").mkdir()
    vocabulary = {
        c: i for i, c in enumerate(["<eos>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz ?:\n"])
    }
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", additional_special_tokens=["<|im_end|>"]
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained("narrow")
    from builders import tiny_model

    tiny_model("llama", vocab_size=64).save_pretrained("narrow")
    said = rejected(json.dumps({"instruction": "bonjour", "output": "été à l'œuvre"}), folder="narrow")
    assert "the model's vocabulary cannot spell" in said
    assert "over 5% is too much to learn from: use a model with a larger vocabulary" in said


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\xef\xbb\xbf" + ROW.encode(), "bom.jsonl"),
        (ROW.encode() + b"\r\n" + ROW.encode() + b"\r\n", "crlf.jsonl"),
        ("\ufeffinstruction,output\r\na,b\r\n".encode(), "bom.csv"),
        (json.dumps([json.loads(ROW)]).encode(), "list.jsonl"),
        ('{"instruction": "zeilen\u2028trenner", "output": "é\U0001f600"}'.encode(), "ünïcode file.jsonl"),
    ],
)
def test_harmless_oddities_are_read(tunesmith_cli, tiny_folder, content, name):
    Path(name).write_bytes(content)
    code, _, err = tunesmith_cli("data", "inspect", name, "--model", tiny_folder, "--json")
    assert code == 0, err
    # training gets as far as the weights, which this file forbids
    code, out, err = tunesmith_cli("train", "--model", tiny_folder, "--data", name, "--set", "validation=false")
    assert (code, out) == (1, "")
    assert "weights were loaded" in err.splitlines()[-1]


def test_other_verbs(refused, tiny_folder):
    Path("data.jsonl").write_text('{"foo": 1}')
    Path("file").touch()
    for verb in (["evaluate"], ["generate"]):
        assert "of no known format" in refused(*verb, tiny_folder, "--data", "data.jsonl")
    assert "the prompt is no UTF-8 text" in refused("generate", tiny_folder, "--prompt", "caf\udce9")
    assert "file/data cannot be used: not a directory" in refused("demo", "--output", "file")


def test_inspecting_what_cannot_be_read(tunesmith_cli):
    Path("good.jsonl").write_text(ROW)
    Path("bad.jsonl").write_bytes(b"\xff\xfe" + ROW.encode("utf-16-le"))
    code, out, err = tunesmith_cli("data", "inspect", "good.jsonl", "bad.jsonl", "--no-tokens", "--json")
    assert code == 2
    assert err == "tunesmith: bad.jsonl: the file is UTF-16; save it as UTF-8.\n"
    sources = json.loads(out)["sources"]  # the other file is told all the same
    assert [(s["path"], s["format"], s["rows"]) for s in sources] == [
        ("good.jsonl", "alpaca", 1),
        ("bad.jsonl", None, 0),
    ]
    assert [(p["row"], p["kind"]) for p in sources[1]["problems"]] == [(None, "not_text")]


def test_inspecting_broken_rows_is_no_failure(tunesmith_cli):
    Path("data.jsonl").write_text(rows('{"instruction": "a", ', {"instruction": "=1+1", "output": ""}))
    code, out, err = tunesmith_cli("data", "inspect", "data.jsonl", "--no-tokens", "--csv", "p.csv")
    assert (code, err) == (0, "")
    assert "line 3 is broken JSON" in out
    assert "next: tunesmith data prepare data.jsonl --output prepared" in out
    assert '"\'=1+1"' in Path("p.csv").read_text()


def test_options_of_inspect_that_are_wrong(refused, tunesmith_cli):
    Path("data.jsonl").write_text(ROW)
    assert "there is no data file data.jsn" in refused("data", "inspect", "data.jsn")
    assert "there is no model folder ./no." in refused("data", "inspect", "data.jsonl", "--model", "./no")
    assert "no/p.csv cannot be written" in refused("data", "inspect", "data.jsonl", "--no-tokens", "--csv", "no/p.csv")
    code, _, err = tunesmith_cli("data", "inspect", "data.jsonl", "--max-length", "1")
    assert code == 2
    assert "--max-length" in err
