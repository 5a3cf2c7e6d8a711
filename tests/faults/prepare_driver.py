"""Kills preparations and takes them up again: `python prepare_driver.py FOLDER HOW SEED` (HOW all, sample or at-random).

FOLDER holds a.jsonl and b.jsonl. One preparation is left alone; it notes each moment at which something is written, synced, renamed
or removed. Every other is killed by SIGKILL at one of those moments, or after a random time, and called again. Half of them
replace a set that was there. Each is a forked child of this process. Prints JSON: {"points": how many, "different": {point: what
is wrong}, "continued": how many went on from a finished step}.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from kills import dies_at, forked, wait

from tunesmith.data import card, lineage, prepare, recipe, work
from tunesmith.data.records import Origin, Text

RANDOM = 12
STEPS = ("quality", "exact_duplicates", "personal_data", "split")


def section(least: int) -> dict:
    off = {name: False for name in recipe.all_steps() if name not in STEPS}
    return {
        **off,
        "quality": {"min_chars": least},
        "exact_duplicates": True,
        "personal_data": True,
        "split": {"test": 3},
    }


def child(root: Path, name: str, least: int = 3, at=None) -> int:
    """Start a preparation in a child and return its process number."""

    def work_() -> None:
        data = [str(root / "a.jsonl"), str(root / "b.jsonl")]
        heard = []
        prepare.run(data, section(least), root / name, 0, [heard.append], force=True)
        began = [e["step"] for e in heard if e["event"] == "begin"]
        (root / f"{name}.began").write_text(json.dumps(began))

    return forked(work_, at)


def content(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a set; of the card all but what was when; of its page that it is there."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "card.json":
            found_card = json.loads(data)
            found_card.pop("made")
            data = json.dumps(found_card).encode()
        found[path.relative_to(folder).as_posix()] = "" if path.suffix == ".html" else hashlib.sha256(data).hexdigest()
    return found


def states(root: Path, name: str, allowed: list[dict[str, str]]) -> str | None:
    """What is wrong with what a killed preparation left: its folder must be absent, the set that was there, or the new one."""
    folder = root / name
    if folder.exists() and content(folder) not in allowed:
        return f"left {sorted(content(folder))}"
    return None


def main(root: Path, how: str, seed: int) -> dict:
    import pyarrow.parquet  # noqa: F401 (once, for all children)

    card.masked([Text("a mail to x@haus-bau.de", Origin("a", 1))])  # its patterns are compiled once, for all children
    noted = root / "moments.txt"
    log = noted.open("w", buffering=1)
    began = time.monotonic()
    assert wait(child(root, "old", least=1)) == 0
    shutil.copytree(root / "old", root / "whole")
    assert wait(child(root, "whole", at=lambda what: log.write(what + "\n"))) == 0
    took = time.monotonic() - began
    moments = noted.read_text().splitlines()
    wanted, old = content(root / "whole"), content(root / "old")
    assert wanted != old
    rng = random.Random(seed)
    points = list(range(len(moments)))
    if how == "sample":
        last = [i for i, what in enumerate(moments) if what.startswith(("rename previous", "rename whole", "remove"))]
        points = [*rng.sample([p for p in points if p not in last], 10), *last]
    if how == "at-random":
        points = [rng.random() * took for _ in range(RANDOM)]
    different, continued = {}, 0
    for n, point in enumerate(points):
        name = f"killed-{n}"
        replaces = how != "at-random" or n % 2 == 0
        if replaces:
            shutil.copytree(root / "old", root / name)
        process = child(root, name, at=None if how == "at-random" else dies_at(point))
        if how == "at-random":
            time.sleep(point)
            os.kill(process, signal.SIGKILL)
        ended = wait(process)
        left = states(root, name, [old, wanted])
        again = wait(child(root, name))
        found = content(root / name)
        killed = ended == -signal.SIGKILL or (how == "at-random" and ended == 0)
        rest = [p.name for p in root.iterdir() if p == work.beside(root / name)]
        if not killed or left or again or found != wanted or rest:
            unequal = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
            what = f"after {point:.2f} s" if how == "at-random" else f"{point}: {moments[point]}"
            different[what] = {"ended": ended, "left": left, "again": again, "unequal": unequal, "rest": rest}
        steps = json.loads((root / f"{name}.began").read_text()) if again == 0 else []
        continued += 0 < len(steps) < len(STEPS)
        shutil.rmtree(root / name, ignore_errors=True)
    return {"points": len(points), "moments": len(moments), "different": different, "continued": continued}


if __name__ == "__main__":
    lineage.GROUP = 20  # several writes to the lineage
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
