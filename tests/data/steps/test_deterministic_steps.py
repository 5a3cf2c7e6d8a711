"""The same rows give the same fates, facts and columns in every process, however Python hashes and however many threads there are."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
SCRIPT = """
import hashlib, json, sys
sys.path.insert(0, sys.argv[1])
from copies_planted import Writer
from tunesmith import registry
from tunesmith.data.rows import Rows

writer = Writer(21)
base = [writer.row(i) for i in range(200)]
rows = Rows(base + writer.lookalikes() + [writer.copy(r, 0) for r in base[:60]] + base[:20])
options = {
    "relevance": {"like": writer.text(20), "keep": 0.9},
    "contamination": {"against": [sys.argv[2]]},
    "balance": {"by": "topic", "mode": "stratify", "topics": 5},
}
facts = []
for name in sys.argv[3].split():
    rows.step = name
    facts.append(registry.load("data.steps", name).apply(rows, **options.get(name, {})))
fates = [[f.id, f.step, f.action, f.reason, f.facts] for f in rows.fates]
columns = {name: hashlib.sha256(column.tobytes()).hexdigest() for name, column in rows.columns.items()}
print(len(fates), hashlib.sha256(json.dumps([fates, facts, columns], sort_keys=True).encode()).hexdigest())
"""
STEPS = "repair quality language exact_duplicates near_duplicates contamination relevance balance diversity"


def test_every_process_gives_the_same(write):
    test = write(
        "test.jsonl",
        [{"prompt": f"What is the sign for {w} in the old table of signs?", "completion": "x"} for w in "abc"],
    )

    def run(hash_seed, threads):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", SCRIPT, str(HERE), test, STEPS]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    first = run("1", "1")
    assert int(first.split()[0]) > 80
    assert first == run("2", "2")
