"""The kinds of problem `data inspect` knows: how grave each is, what it is in a few words, and what to do about it."""

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """error: training stops at the row, or learns nothing from it; warning: it teaches something wrong; note: worth a look.

    `step` is the step of `data prepare` that mends or drops it, as the remedy says.
    """

    severity: Severity
    title: str
    remedy: str
    step: str | None = None


def _by(severity: Severity, title: str, step: str, does: str) -> Kind:
    return Kind(severity, title, f"`tunesmith data prepare` {does} (step {step}).", step)


_MEND = "Mend the row in the file, or leave it out."
_SAVE = "Save or export the file anew."
_NAME = "Rename the field, or map it with columns: {our field: the file's column}."
_TOOL = "Mend the call or the tools it declares, or delete the row."
_LENGTH = "Raise max_length (train.max_length, up to the model's context), shorten the prompt, or leave the row out."
_JOIN = "Give the whole file, or the other messages beside it."

_UNREADABLE = {
    "missing_field": Kind("error", "a field is missing", _NAME),
    "wrong_columns": Kind("error", "too many or too few values", _SAVE),
    "null_field": Kind("error", "a field is null", _MEND),
    "empty_field": Kind("error", "a field is empty", _MEND),
    "wrong_type": Kind("error", "a value of the wrong type", _MEND),
    "bad_value": Kind("error", "a value that is not allowed", _MEND),
    "unknown_label": Kind("error", "a label that has no name", "Name it in labels, or mend the row."),
    "unsupported_part": Kind("error", "a part that is not read", _MEND),
    "not_joined": Kind("error", "a message without its tree", _JOIN),
    "orphan_message": Kind("error", "a message whose parent is not there", "Keep the messages of a tree together."),
    "repeated_id": Kind("error", "an id that stands twice", "Give each message an id of its own."),
    "repeated_field": Kind("error", "a field that stands twice in a row", "Keep one of the two."),
    "no_prompt": Kind("error", "an answer to no prompt", "Give the prompt in its own field."),
    "too_few_answers": Kind("error", "fewer than two answers", "Add an answer to compare with, or delete the row."),
    "no_ranking": Kind("error", "answers without an order", "Give scores or ranks, one for each answer."),
    "wrong_kind": Kind("error", "a row of another kind than asked for", "Take the source out, or give rows of that kind."),
    "not_object": Kind("error", "a row that is no object", _MEND),
    "broken_json": Kind("error", "broken JSON", _MEND),
    "broken_csv": Kind("error", "broken CSV", _SAVE),
    "broken_parquet": Kind("error", "broken Parquet", _SAVE),
    "half_character": Kind("error", "half a character", _MEND),
    "mixed_format": Kind("error", "a row of another format", "Put the rows of each format in a file of their own, or state the format."),
    "not_utf8": Kind("error", "not UTF-8", "Save the file as UTF-8."),
    "not_text": Kind("error", "not a text file", "Unpack or export it as JSONL, CSV or Parquet in UTF-8."),
    "unreadable": Kind("error", "a file that cannot be read", "Check its place and its permissions."),
    "empty_file": Kind("error", "an empty file", "Check where the file came from."),
    "empty_slice": Kind("error", "a slice without rows", "Ask for rows that the file has."),
    "unknown_format": Kind("error", "an unknown format", "Say which column is which: columns: {prompt: …, completion: …}."),
}  # fmt: skip

_TURNS = {
    "empty_text": _by("error", "an empty text", "repair", "drops it"),
    "empty_answer": _by("error", "an empty answer", "repair", "drops rows without another one"),
    "empty_prompt": Kind("warning", "an empty prompt", "Write the prompt, or delete the row."),
    "empty_reference": Kind("warning", "an empty reference answer", "Write the reference, or delete the row."),
    "role_order": _by("warning", "roles out of order", "repair", "moves system turns to the front and joins turns of one role"),
    "no_answer": _by("error", "no answer to train on", "repair", "drops the row"),
    "ends_without_answer": Kind("warning", "a last turn nobody answers", "Add the answer, or delete the turn: it teaches nothing."),
    "equal_answers": _by("error", "answers that are the same", "repair", "drops the row: it prefers nothing"),
    "tied_scores": Kind("error", "scores that are all the same", "Delete the row, or score it anew: it prefers nothing."),
}  # fmt: skip

_TOOLS = {
    "orphan_tool": _by("warning", "a tool result without a call", "repair", "drops the row, unless you add the call"),
    "unanswered_call": Kind("warning", "a tool call without a result", "Add the tool's turn after the call, or delete the row."),
    "repeated_call": Kind("warning", "calls of one turn with the same id", "Give each call an id of its own, and its result the same."),
    "unknown_tool": Kind("warning", "a call of a tool that is not declared", _TOOL),
    "no_tools_declared": Kind("note", "tool calls in a row that names no tools", "Add the tools, so that the model sees what it may call."),
    "bad_arguments": Kind("warning", "arguments that do not fit the tool", _TOOL),
}  # fmt: skip

_ENCODING = {
    "mojibake": _by("warning", "text decoded with the wrong encoding", "repair", "decodes it rightly"),
    "replacement_character": Kind("warning", "characters lost in decoding", "Export the text anew as UTF-8, or delete the row."),
    "control_character": _by("warning", "control characters", "repair", "removes them"),
    "invisible_character": _by("note", "invisible characters", "repair", "removes them"),
    "html_entity": _by("warning", "HTML entities", "repair", "decodes them with entities: true"),
    "escaped_newline": Kind("warning", "line breaks written as \\n", "Decode the text once more before writing the file."),
}  # fmt: skip

_ANSWERS = {
    "answer_is_prompt": Kind("warning", "an answer that repeats the prompt", "Write the answer, or delete the row."),
    "placeholder": Kind("warning", "a placeholder left in", "Fill it in, or delete the row."),
    "refusal": _by("note", "a refusal, or talk of being an AI", "quality", "drops such rows with refusals: drop"),
    "loop": _by("warning", "a text that goes round in a loop", "quality", "drops it"),
    "unfinished": _by("note", "an answer that breaks off", "quality", "drops such rows with unfinished: drop"),
    "code_fence": Kind("note", "a code block that is not closed", "Add the missing ``` line, or delete the row."),
    "special_token": Kind("warning", "special tokens spelt in the text", "Remove them: a tokenizer may read them as the turn's end."),
    "next_turn": Kind("note", "an answer that goes on with the next turn", "Cut the answer before it, or split the row in turns."),
    "html_tag": Kind("note", "HTML tags in plain text", "Take the tags out, unless the text is meant to be HTML."),
    "secret": _by("warning", "keys, passwords and other secrets", "personal_data", "puts pseudonyms in their place"),
    "personal_data": _by("note", "personal data", "personal_data", "puts pseudonyms in their place"),
}  # fmt: skip

_SETS = {
    "duplicate": _by("warning", "rows that repeat another", "exact_duplicates", "keeps one of each"),
    "same_prompt": Kind("note", "one prompt with different answers", "Keep the better answer, or make a preference of the two."),
    "conflict": Kind("warning", "rows that contradict each other", "Keep the one that is right."),
    "leak": _by("warning", "training prompts in the validation or test set", "contamination", "drops them with against: [the test file]"),
    "stray_field": Kind("note", "a field that only a few rows have", "Check its spelling, or delete it."),
    "absent_field": Kind("note", "a field that only a few rows lack", "Add it, or check that it may be missing."),
    "schema_drift": Kind("warning", "fields that appear or vanish part way", "Two exports seem to be in one file: check both."),
    "type_drift": Kind("warning", "a field whose type changes", "Give it one type in all rows."),
    "null_column": Kind("note", "a column that is null in most rows", "Leave the column out if it says nothing."),
    "label_imbalance": _by("note", "labels that are out of balance", "balance", "caps or re-weights them"),
    "label_typo": Kind("warning", "a label that looks misspelt", "Write it as the others are."),
    "other_language": _by("note", "rows of another language", "language", "keeps the languages you name"),
    "very_long": _by("note", "prompts or answers far longer than the others", "quality", "drops those beyond max_chars"),
    "very_short": _by("note", "answers far shorter than the others", "quality", "drops those below min_chars"),
}  # fmt: skip

_TOKENS = {
    "template_refused": Kind("error", "rows the chat template refuses", "Change the row, or use a model whose template takes it."),
    "answer_cut": Kind("warning", "answers cut by the length limit", _LENGTH),
    "answer_beyond": Kind("error", "answers that begin beyond the length limit", _LENGTH),
}  # fmt: skip

KINDS: dict[str, Kind] = {**_UNREADABLE, **_TURNS, **_TOOLS, **_ENCODING, **_ANSWERS, **_SETS, **_TOKENS}


def kind(name: str) -> Kind:
    """Return what is known of a kind; a reader's own kinds that are not listed are errors of the row."""
    return KINDS.get(name, Kind("error", name.replace("_", " "), _MEND))
