"""Offers of changed weights in shared memory: found where they are whole, fresh and of the right base, else not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dcr_ray.weights import shared_memory
from dcr_ray.weights.shared_memory import offer, offered, remove_stale, withdraw, withdraw_one

TENSORS = {"a.weight": torch.arange(64.0), "b.weight": torch.ones(8, 8)}
SIZE = sum(tensor.nbytes for tensor in TENSORS.values())


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    root = tmp_path / "memory"
    root.mkdir()
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", root)
    return root


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a.weight": torch.zeros(4)}, folder / "model.safetensors")
    return folder


def files(memory: Path) -> list[Path]:
    return sorted(memory.rglob("*.safetensors"))


def test_an_offer_is_found_with_its_names_and_values_also_after_the_folder_has_moved(checkpoint, tmp_path):
    assert offered(checkpoint, "base") is None
    assert offer(checkpoint, TENSORS, "base", study="s")
    moved = checkpoint.rename(tmp_path / "moved")
    found = offered(moved, "base")
    assert found.names == TENSORS.keys()
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(found.file).items())


def test_nobody_else_can_read_an_offer_and_a_folder_that_others_can_read_is_not_used(checkpoint, memory):
    assert offer(checkpoint, TENSORS, "base", study="s")
    (file,) = files(memory)
    assert [path.stat().st_mode & 0o777 for path in (file, file.parent, file.parent.parent)] == [0o600, 0o700, 0o700]
    file.parent.parent.chmod(0o755)
    assert offered(checkpoint, "base") is None
    assert not offer(checkpoint, TENSORS, "base", study="s")


def test_one_offer_is_withdrawn_and_the_others_stay(checkpoint, memory, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    assert offer(checkpoint, TENSORS, "base", study="s") and offer(other, TENSORS, "base", study="s")
    withdraw_one(checkpoint)
    assert offered(checkpoint, "base") is None and offered(other, "base") is not None
    assert len(files(memory)) == 1
    withdraw_one(checkpoint)


def test_an_offer_of_another_base_is_not_used(checkpoint):
    assert offer(checkpoint, TENSORS, "base", study="s")
    assert offered(checkpoint, "another") is None


def test_an_offer_made_before_the_checkpoint_was_written_anew_is_not_used(checkpoint):
    assert offer(checkpoint, TENSORS, "base", study="s")
    save_file({"a.weight": torch.ones(5)}, checkpoint / "model.safetensors")
    assert offered(checkpoint, "base") is None


def test_half_an_offer_is_not_used(checkpoint, memory):
    assert offer(checkpoint, TENSORS, "base", study="s")
    (file,) = files(memory)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert offered(checkpoint, "base") is None


@pytest.mark.parametrize("pointer", ["", "[]", '{"study": "../../x", "offer": "y", "files": {}}', '{"study": 1}'])
def test_a_torn_or_foreign_pointer_leads_nowhere(checkpoint, pointer):
    assert offer(checkpoint, TENSORS, "base", study="s")
    (checkpoint / shared_memory.POINTER_FILE).write_text(pointer)
    assert offered(checkpoint, "base") is None


def test_a_study_that_is_withdrawn_leaves_nothing_and_others_keep_theirs(checkpoint, memory, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    assert offer(checkpoint, TENSORS, "base", study="s") and offer(other, TENSORS, "base", study="t")
    withdraw("s")
    assert offered(checkpoint, "base") is None and offered(other, "base") is not None
    assert len(files(memory)) == 1


def test_the_oldest_offers_make_room_and_one_that_never_fits_is_not_made(tmp_path, checkpoint, memory):
    folders = []
    for number in range(3):
        folder = tmp_path / f"c{number}"
        shutil.copytree(checkpoint, folder)
        assert offer(folder, TENSORS, "base", study="s", most_bytes=3 * SIZE)
        folders.append(folder)
        os.utime(files(memory)[0]) if number == 0 else None
        for file in files(memory):
            facts = file.stat()
            os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns - 10**9))
    assert [offered(folder, "base") is not None for folder in folders] == [False, True, True]
    assert not offer(checkpoint, TENSORS, "base", study="s", most_bytes=SIZE - 1)
    assert len(files(memory)) == 2


def test_no_more_than_a_share_of_what_is_free_is_taken(checkpoint, monkeypatch):
    monkeypatch.setattr(shared_memory, "FREE_SHARE", 1e-12)
    assert not offer(checkpoint, TENSORS, "base", study="s")


def test_without_shared_memory_there_is_no_offer(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "missing")
    assert not offer(checkpoint, TENSORS, "base", study="s")
    assert offered(checkpoint, "base") is None
    withdraw("s")


def test_what_a_dead_process_left_is_removed_whole_or_half_and_what_a_living_one_offers_stays(checkpoint, memory):
    assert offer(checkpoint, TENSORS, "base", study="s")
    (living,) = files(memory)
    code = (
        "import sys, torch; from pathlib import Path; from dcr_ray.weights import shared_memory as m\n"
        "m.SHARED_MEMORY = Path(sys.argv[1])\n"
        "assert m.offer(sys.argv[2], {'a': torch.ones(4)}, 'base', study='dead')\n"
        "(file,) = (m.SHARED_MEMORY).glob('*/*/' + m._process_name() + '*')\n"
        "file.with_suffix('.partial').write_bytes(b'half')"
    )
    subprocess.run([sys.executable, "-c", code, str(memory), str(checkpoint)], check=True)
    assert len(list(memory.rglob("*.partial"))) == 1 and len(files(memory)) == 2
    remove_stale()
    assert [path for path in memory.rglob("*") if path.is_file()] == [living]
    another_boot = living.with_name("0" * 12 + living.name[12:])
    living.rename(another_boot)
    remove_stale()
    assert not files(memory)
