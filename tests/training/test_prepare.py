"""What is settled before a run begins stays settled: a template that writes the date writes the run's, whatever day it is."""

import shutil
from datetime import date

import numpy as np

from builders import CHATML, byte_tokenizer
from tunesmith.config import parse
from tunesmith.training import infer
from tunesmith.training.prepare import Prepared


def test_a_resumed_run_keeps_the_date_its_template_was_told(tiny_folder, rows_file, tmp_path, monkeypatch):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    byte_tokenizer("Today is {{ strftime_now('%d %b %Y') }}. " + CHATML).save_pretrained(model)

    def today(day):
        monkeypatch.setattr(
            infer, "date", type("Day", (date,), {"today": classmethod(lambda _: date.fromisoformat(day))})
        )

    today("2026-01-31")
    first = Prepared(parse({"model": str(model), "data": str(rows_file)}))
    assert first.config.train.date == "2026-01-31"
    assert "Today is 31 Jan 2026." in first.tokenizer.decode(first.examples.ids[:40])
    today("2026-02-01")
    resumed = Prepared(first.config)
    assert np.array_equal(resumed.examples.ids, first.examples.ids)
    assert "Today is 01 Feb 2026." in (
        again := Prepared(parse({"model": str(model), "data": str(rows_file)}))
    ).tokenizer.decode(again.examples.ids[:40])


def test_a_template_without_a_clock_asks_for_no_date(tiny_folder, rows_file):
    assert Prepared(parse({"model": str(tiny_folder), "data": str(rows_file)})).config.train.date is None
