"""transformers' report on the weights of a checkpoint, kept back where it only says that a reward model's head is new."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

HEADS = {"score.weight", "lm_head.weight"}  # the new one, and the one of the causal model that gives its place to it
_ROW = re.compile(r"^(\S+) +\|", re.MULTILINE)


@contextmanager
def new_head() -> Iterator[None]:
    """Within it the report is not logged where it names no weight but heads."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_tells)
    try:
        yield
    finally:
        logger.removeFilter(_tells)


def _tells(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return "LOAD REPORT" not in said or not set(_ROW.findall(said)) <= {"Key", *HEADS}
