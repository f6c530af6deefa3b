"""checkpoint: whole or absent, verified, and the newest good one is found."""

import json
import shutil
import subprocess

import pytest
import torch

from labkit.errors import LabError
from labkit.training import checkpoint


def write(folder, step, value=1.0):
    tensors = {"model": {"w": torch.full((50,), value)}, "optimizer": {}, "rng": {}}
    return checkpoint.save(checkpoint.step_folder(folder, step), step, tensors, {"note": "x"})


def test_round_trip(tmp_path):
    loaded = checkpoint.load(write(tmp_path, 7, 3.5))
    assert (loaded.step, loaded.state) == (7, {"note": "x"})
    assert torch.equal(loaded.tensors["model"]["w"], torch.full((50,), 3.5))


def test_newest_takes_the_highest_step_and_none_when_empty(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    write(tmp_path, 9)
    write(tmp_path, 100)
    assert checkpoint.newest(tmp_path).step == 100


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damage_is_named_and_the_older_good_one_used(tmp_path, file, damage):
    write(tmp_path, 1)
    target = write(tmp_path, 2) / file
    data = bytearray(target.read_bytes())
    if damage == "delete":
        target.unlink()
    elif damage == "truncate":
        target.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0x40
        target.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"skipped: checkpoint .*step-00000002"):
        assert checkpoint.newest(tmp_path).step == 1


def test_prune_keeps_the_newest_and_sweeps_torn_folders(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / ".step-00000004.tmp-1").mkdir()
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_tied_weights_are_stored_once_and_restored_tied(tmp_path):
    from training import tiny_model

    model, other = tiny_model(seed=0), tiny_model(seed=1)
    assert model.lm_head.weight is model.embedding.weight
    tensors = checkpoint.model_tensors(model)
    assert "lm_head.weight" not in tensors
    checkpoint.load_model(other, tensors)
    assert torch.equal(other.lm_head.weight, model.embedding.weight)
    assert other.lm_head.weight is other.embedding.weight


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small tmpfs to fill")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_named_and_leaves_older_checkpoints(small_disk):
    write(small_disk, 1)
    huge = {"model": {"w": torch.zeros(1_000_000)}, "optimizer": {}, "rng": {}}
    with pytest.raises(LabError, match=r"the disk is full: checkpoint step-00000002 needs 4\.0 MB"):
        checkpoint.save(checkpoint.step_folder(small_disk, 2), 2, huge, {})
    assert [p.name for p in small_disk.iterdir()] == ["step-00000001"]
    assert checkpoint.newest(small_disk).step == 1


def test_manifest_covers_every_other_file(tmp_path):
    path = write(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) | {"manifest.json"} == {p.name for p in path.iterdir()}
