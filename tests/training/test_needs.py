"""Options that no row has anything for are refused: they would do nothing."""

import logging

import pytest

from tunesmith import registry
from tunesmith.data.records import Origin, Preference
from tunesmith.errors import InputError
from tunesmith.model.load_report import new_head
from tunesmith.training.make_objective import check as check_section
from tunesmith.training.needs import check


def module(name):
    return registry.load("training.objectives", name)


def pairs(scores=None, **extra):
    two = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]
    return [Preference([], two, Origin("p.jsonl", n), scores if n == 2 else None, extra=dict(extra)) for n in (1, 2)]


@pytest.mark.parametrize(("name", "option"), [("dpo", "margin"), ("sppo", "soft"), ("reward", "margin")])
def test_scores_that_an_option_goes_by(name, option):
    with pytest.raises(InputError, match=rf"^objective.{option} goes by .* no row has scores; give score_chosen and"):
        check(pairs(), module(name), {"name": name, option: 1})
    check(pairs(), module(name), {"name": name, option: 0})
    check(pairs(), module(name), {"name": name})
    check(pairs([2.0, 1.0]), module(name), {"name": name, option: 1})  # one row is enough


def test_attributes_that_rows_are_rated_by():
    section = {"name": "reward", "margin": 1.0, "attributes": {"helpful": 0.7, "harmles": 0.3}}
    with pytest.raises(InputError, match=r'no row rates "harmles"; .* Did you mean "harmless"\?$'):
        check(pairs(helpful="chosen", harmless=[1, 2]), module("reward"), section)
    section["attributes"] = ["helpful", "harmless"]
    check(pairs(helpful="chosen", harmless=[1, 2]), module("reward"), section)  # their ratings are the margin's scores


@pytest.mark.parametrize("given", [{"helpful": "much"}, {"helpful": True}, {"helpful": float("nan")}, 3])
def test_what_attributes_are(given):
    with pytest.raises(
        InputError, match=r"attributes should be names, or weights by name as \{helpful: 0.7, harmless: 0.3\}, found"
    ):
        check_section({"name": "reward", "attributes": given}, "the run")


def test_a_report_on_weights_is_kept_back_for_a_new_head_alone(caplog):
    logger = logging.getLogger("transformers.modeling_utils")
    head = "Llama LOAD REPORT from: x\nKey            | Status     | \n------\nscore.weight   | MISSING    | \n"
    other = head + "layers.0.bias  | MISSING    | \n"
    with caplog.at_level("WARNING", logger.name):
        logger.addHandler(caplog.handler)
        try:
            with new_head():
                for said in (head, other, "another warning"):
                    logger.warning(said)
            logger.warning(head)
        finally:
            logger.removeHandler(caplog.handler)
    told = list(dict.fromkeys(r.getMessage() for r in caplog.records))
    assert told == [other, "another warning", head]
