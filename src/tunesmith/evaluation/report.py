"""report.html: one self-contained file that says what a run did, whether it helped, and how to use the result."""

import base64
import hashlib
import os
from html import escape
from importlib import resources
from pathlib import Path

from tunesmith.evaluation.report_curves import curves_section
from tunesmith.evaluation.report_facts import environment_section, notices_section, settings_section, use_section
from tunesmith.evaluation.report_metrics import metrics_section, read_families
from tunesmith.evaluation.report_reward import reward_section
from tunesmith.evaluation.report_run import RunRecord, read_run
from tunesmith.evaluation.report_samples import samples_section
from tunesmith.evaluation.report_verdict import header, run_name, tiles


def write_report(run_folder: Path) -> Path:
    """Write report.html into the run's folder and return its path.

    Every part of the folder may be missing; its section is then left out. Raises InputError if there is no such folder.
    """
    run = read_run(run_folder)
    path = run_folder / "report.html"
    beside = path.with_name(".report.html.new")
    beside.write_bytes(render(run).encode("utf-8", "replace"))
    os.replace(beside, path)
    return path


def render(run: RunRecord) -> str:
    """Return the report as one HTML document that loads nothing from anywhere."""
    style, script = (
        resources.files("tunesmith.evaluation").joinpath(name).read_text("utf-8")
        for name in ("report.css", "report.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    families = read_families(run)
    sections = [
        ("Measured before and after", metrics_section(families)),
        ("The reward model on held-out rows", reward_section(run.results.get("reward"))),
        ("The same prompts, before and after", samples_section(run.results.get("samples"))),
        ("What was trained, and why so", settings_section(run)),
        ("How training went", curves_section(run)),
        ("Notices", notices_section(run)),
        ("Where it ran", environment_section(run)),
        ("Use it", use_section(run)),
    ]
    body = "".join(f"<section><h2>{heading}</h2>{html}</section>" for heading, html in sections if html)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<link rel="icon" href="data:,"><title>{escape(run_name(run))} · tunesmith report</title>'
        f"<style>{style}</style></head><body><main>{header(run, families)}{tiles(run)}{body}</main>"
        f"<script>{script}</script></body></html>\n"
    )
