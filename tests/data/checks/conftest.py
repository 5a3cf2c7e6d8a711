"""One record through one check."""

import pytest

from tunesmith.data import detect
from tunesmith.data.checks.found import Found
from tunesmith.data.checks.items import item
from tunesmith.data.records import Origin


@pytest.fixture
def items():
    """Make the items of rows as `inspect` does, numbered from 1; the format is the one each row has."""

    def make(*rows):
        out = []
        for number, row in enumerate(rows, 1):
            name, _ = detect.best_match(row)
            out += [item(number, row, record) for record in detect.convert(row, Origin("f", number), name)]
        return out

    return make


@pytest.fixture
def kinds(items):
    """Run a check over rows; return [(row, kind)]."""

    def run(check, *rows):
        found = Found()
        for one in items(*rows):
            check(one, found)
        return [(p["row"], p["kind"]) for p in found.problems()]

    return run


@pytest.fixture
def over(items):
    """Run a check that looks at a whole set over rows; return its problems."""

    def run(check, *rows):
        found = Found()
        for one in items(*rows):
            check.see(one)
        check.end(found)
        return found.problems()

    return run
