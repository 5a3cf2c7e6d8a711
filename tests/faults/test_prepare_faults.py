"""A preparation that is killed, interrupted or meets a full disk leaves no half file under a final name, and goes on to the same bytes."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.data import prepare, recipe, work
from tunesmith.errors import InputError
from tunesmith.training import disk

DRIVER = Path(__file__).parent / "prepare_driver.py"
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1"}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rows(tmp_path) -> str:
    """Sixty rows: some repeat, some are short, one holds an address, one is broken."""
    a = [
        {"instruction": f"what is {i % 40} times two?", "output": f"it is {2 * (i % 40)}, mail x{i}@haus-bau.de"}
        for i in range(50)
    ]
    write(tmp_path / "a.jsonl", [*a, {"instruction": "short?", "output": "y"}, {"instruction": "broken"}])
    return write(tmp_path / "b.jsonl", [{"text": f"a text about {'words ' * i}"} for i in range(10)])


def killed(folder: Path, how: str, seed: int) -> dict:
    command = [sys.executable, str(DRIVER), str(folder), how, str(seed)]
    child = subprocess.run(command, env=ONE_CORE, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout)


def test_killed_at_a_sample_of_moments(rows, tmp_path):
    """SIGKILL at ten writes, syncs and renames, and around the exchange of the old set for the new."""
    found = killed(tmp_path, "sample", 0)
    assert found["different"] == {}
    assert found["points"] >= 13
    assert found["continued"] >= 3


@pytest.mark.slow
def test_killed_at_every_moment(rows, tmp_path):
    found = killed(tmp_path, "all", 0)
    assert found["different"] == {}
    assert found["points"] == found["moments"] >= 40


@pytest.mark.slow
def test_killed_at_random_moments(rows, tmp_path):
    found = killed(tmp_path, "at-random", 1)
    assert found["different"] == {}
    assert found["points"] == 12


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_from_outside(tmp_path, number, code):
    """The command line ends with the signal's code and says that the same command goes on; it does, to the same bytes."""
    path = write(
        tmp_path / "rows.jsonl", [{"text": f"text {i} about {i * i} things and more of it"} for i in range(1500)]
    )
    command = [sys.executable, "-m", "tunesmith", "data", "prepare", path, "--set", "language=false", "--output"]
    with subprocess.Popen(
        [*command, tmp_path / "out"], env=ONE_CORE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("quality"):
            assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate()
    recipe._code.cache_clear()  # the command hashed it now
    assert process.returncode == code, said
    assert "The same command goes on after the last step that was finished." in said
    assert not (tmp_path / "out").exists()
    again = prepare.run(path, {"language": False}, tmp_path / "out")
    assert again["notices"][0].startswith("an interrupted preparation is continued after the step ")
    whole = prepare.run(path, {"language": False}, tmp_path / "whole")
    assert (again["sha256"], again["files"]) == (whole["sha256"], whole["files"])


def test_a_disk_that_fills_is_said_and_the_same_call_goes_on(rows, tmp_path, monkeypatch):
    """At every tenth moment of writing; what was there stays."""
    few = {name: name in ("quality", "exact_duplicates", "split") for name in recipe.all_steps()}
    whole = prepare.run(rows, few, tmp_path / "whole")
    moments: list[str] = []
    with monkeypatch.context() as m:
        m.setattr(disk, "at", moments.append)
        prepare.run(rows, few, tmp_path / "noted")
    for point in range(0, len(moments), 10):
        left = [point]

        def full(what: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "out"))

        with monkeypatch.context() as m:
            m.setattr(disk, "at", full)
            with pytest.raises(InputError) as e:
                prepare.run(rows, few, tmp_path / "out")
        assert "cannot be written: the disk is full (" in str(e.value)
        assert "free space and call again: it goes on from where it was." in str(e.value)
        assert not (tmp_path / "out").exists()
        report = prepare.run(rows, few, tmp_path / "out")
        assert report["sha256"] == whole["sha256"]
        assert not work.beside(tmp_path / "out").exists()
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        (tmp_path / "out").rmdir()


def test_a_really_full_disk(small_disk, tmp_path):
    folder = small_disk(400_000)
    path = write(tmp_path / "rows.jsonl", [{"text": f"text {i} about {i * i} things"} for i in range(8000)])
    with pytest.raises(InputError, match=r"cannot be written: the disk is full \([\d,]+ bytes are free\); free space"):
        prepare.run(path, {"split": False}, folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place(rows, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"the output folder .* cannot be written: permission denied"):
        prepare.run(rows, {}, tmp_path / "closed" / "out")


def test_an_output_below_a_file_is_one_sentence(rows):
    with pytest.raises(InputError, match=r"the output folder .* cannot be written: not a directory"):
        prepare.run(rows, {}, Path(rows) / "out")


def test_two_processes_that_want_the_same_set_make_it_once(rows, tmp_path):
    """As the processes of one launch do: the second waits for the first and finds the set there."""
    program = (
        "import sys; from tunesmith.data import prepare, ingest; "
        "heard = []; prepare.prepared([sys.argv[1]], {}, 0, [heard.append]); "
        "print(sum(e['event'] == 'read' for e in heard))"
    )
    env = {**ONE_CORE, "TUNESMITH_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program, rows]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(said) == ["0", "1"]
    assert len(list((tmp_path / "cache" / "prepared").iterdir())) == 1
