"""A model, a reward and prompts, found good together, and the answers that are sampled and scored."""

from dataclasses import dataclass
from typing import Any

from tunesmith.data.records import Origin, Prompt, Record
from tunesmith.errors import InputError
from tunesmith.evaluation.statistics import Floats
from tunesmith.model import inference, loading
from tunesmith.rewarding import candidates, rewards
from tunesmith.rewarding.candidates import Answer, Kept, Question, Sampling, Told
from tunesmith.rewarding.rewards import Metric, Reward

TYPED = "--prompt"  # the file of a prompt that was given by itself


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked whom, and who scores; no weight is loaded yet."""

    model: str
    adapter: str | None
    checked: inference.Checked
    reward: Reward
    asked: list[Question]
    notices: list[str]

    def answers(self, n: int, sampling: Sampling, keep: bool, told: Told) -> tuple[list[list[Answer]], list[Floats]]:
        """Return n answers to each question and their scores, (Q,n) each; with `keep` answers are kept as they come (Kept).

        The model is let go before the reward model is loaded.
        """
        kept = Kept(self.model, self._weights(), sampling) if keep else None
        try:
            answers = candidates.sample(self.checked.load, self.checked.tokenizer, self.asked, n, sampling, kept, told)
        finally:
            if kept is not None:
                kept.journal.close()
        told(f"scoring {len(self.asked) * n:,} answers with {self.reward.name}")
        items = [question.item for question in self.asked]
        return answers, self.reward.score(items, [[answer.text for answer in own] for own in answers])

    def _weights(self) -> str:
        source = self.checked.source
        held = source.quantize.name if source.quantize else ""
        return f"{candidates.fingerprint(source.base, source.adapter)} {held} {self.checked.device}"


def prepare(
    model: str,
    reward: str | None,
    *,
    prompt: str | None = None,
    data: Any = None,
    limit: int | None = None,
    every: bool = True,
    adapter: str | None = None,
    quantize: str | None = None,
    device: str | None = None,
) -> Asking:
    """Find a model, a reward and what is asked: one prompt, or the first `limit` rows of `data` (`every` as in `questions`).

    InputError for anything wrong; no weight is loaded.
    """
    from tunesmith.data.sources import load

    if reward is None:
        raise InputError(
            "the best of several answers takes a reward: name a reward model's folder, or `rule` where rows state rules (check)."
        )
    loading.resolve(model, adapter)  # a wrong name is said before data is read, and wrong data before torch is loaded
    named = rewards.named(reward)
    if prompt is not None and isinstance(named, Metric):
        raise InputError(
            f"the reward {reward} scores an answer by what its row says; give --data with such rows, or a reward model."
        )
    loaded = None if data is None else load(data)
    judge = rewards.find(reward, device)
    checked = inference.check(model, adapter, device, quantize)
    records: list[Record] = [Prompt([{"role": "user", "content": prompt}], Origin(TYPED, 1))]
    if loaded is not None:
        records = list(loaded.records[:limit])
    asked, left_out = candidates.questions(records, checked.tokenizer, _context(checked), every)
    judge.check([question.item for question in asked])
    said = checked.notices + (loaded.notices if loaded else []) + left_out
    return Asking(model, adapter, checked, judge, asked, list(dict.fromkeys(said)))


def _context(checked: inference.Checked) -> int | None:
    """Return how many tokens of text the model's positions reach, from its files."""
    context = getattr(loading.load_config(checked.source).get_text_config(), "max_position_embeddings", None)
    adapter = checked.source.adapter
    virtual = int(loading.adapter_config(adapter).get("num_virtual_tokens") or 0) if adapter else 0
    return int(context) - virtual if context else None
