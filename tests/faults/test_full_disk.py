"""A full disk: said in one sentence with the folder, the bytes and the remedy; what was written is whole, and resumed to the same bits."""

import errno
import json
import shutil

import pytest
from driver import STEPS, config, content

from tunesmith.errors import InputError
from tunesmith.training import checkpoint, disk


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    """kind -> what a run that nothing happened to ends with."""
    import tunesmith

    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for kind in ("lora", "full"):
        tunesmith.train(config(material, kind), output=str(folder / kind))
        found[kind] = content(folder / kind)
    return found


def fill(folder, left: int) -> None:
    """Leave so many bytes of the folder's file system free."""
    (folder / "ballast").write_bytes(b"\0" * (shutil.disk_usage(folder).free - left))


def refusal(call, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as e:
        call(*arguments, **keywords)
    assert "\n" not in str(e.value)
    return str(e.value)


def test_too_small_a_disk_is_refused_before_anything_is_written(train, small_disk, monkeypatch):
    from tunesmith.model import loading

    folder = small_disk(1_000_000)
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    said = refusal(train, "full", folder / "run")
    assert f"the disk of {folder / 'run'} is too full for this run: 4 checkpoints and the result take " in said
    assert f" bytes, {disk.free(folder):,} are free; free space there, or choose another --output." in said
    assert not (folder / "run").exists()


def test_an_adapter_is_refused_as_early(train, small_disk):
    """Its parameters are counted on a model without memory; with room made, the same run begins."""
    folder = small_disk(3_000_000)
    fill(folder, 700_000)
    assert "too full for this run" in refusal(train, "lora", folder / "run")
    assert not (folder / "run").exists()
    (folder / "ballast").unlink()
    assert train("lora", folder / "run")["steps"] == STEPS


@pytest.mark.parametrize("left", [40_000, 0])
@pytest.mark.parametrize("known", [True, False])
def test_a_disk_that_fills_ends_the_run_and_nothing_is_lost(
    train, small_disk, whole, monkeypatch, tunesmith_cli, material, left, known
):
    """Filled when step 2 is saved: seen before the next save (known) or met while writing it; no event or state is written any more."""
    folder = small_disk(8_000_000)
    (folder / "run.yaml").write_text(json.dumps({**config(material, "full"), "output": str(folder / "run")}))

    def filling(what):
        if what == "rename step-2":
            fill(folder, left)

    with monkeypatch.context() as m:
        m.setattr(disk, "at", filling)
        if not known:
            m.setattr(disk, "free", lambda _: 10**12)
        code, out, err = tunesmith_cli("train", folder / "run.yaml")
    said = err.strip().splitlines()[-1]
    assert code == 2, err
    assert out == ""
    assert str(folder / "run") in said
    assert "free" in said
    assert said.endswith("free space there and continue with --resume.") or "disk is full" in said, said
    assert checkpoint.newest_whole(folder / "run" / "checkpoints") == (folder / "run/checkpoints/step-2", [])
    (folder / "ballast").unlink()
    assert train("full", folder / "run", resume=True)["steps"] == STEPS
    assert content(folder / "run") == whole["full"]


@pytest.mark.parametrize(
    "moment",
    ["write .run.yaml.part", "write .results.json.part", "sync trained.safetensors", "rename step-3", "rename result"],
)
def test_a_disk_that_refuses_anywhere_is_said_and_resumed(train, whole, tmp_path, monkeypatch, moment):
    def full(what):
        if what == moment:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run"))

    with monkeypatch.context() as m:
        m.setattr(disk, "at", full)
        said = refusal(train, "lora", tmp_path / "run")
    assert str(tmp_path / "run") in said
    assert "bytes are free" in said
    assert "continue with --resume" in said
    train("lora", tmp_path / "run", resume=True)
    assert content(tmp_path / "run") == whole["lora"]
