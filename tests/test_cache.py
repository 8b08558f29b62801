"""Stage records: a stage counts as finished when its record is there, and not a moment before."""

from __future__ import annotations

import pytest

from dcr_ray.cache import StageCache, identity_difference, stage_key
from dcr_ray.fingerprint import canonical_json, digest

IDENTITY = {"recipe": {"epochs": 1.0}, "parent": None}
KEY = stage_key("sft", IDENTITY)


def committed(cache: StageCache, owner: str = "one", results: dict | None = None):
    return cache.commit("sft", KEY, "full", owner, IDENTITY, results or {"seconds": {"total": 2.0}}, {"worker": "w"})


def test_a_stage_is_found_only_after_it_was_committed(tmp_path):
    cache = StageCache(tmp_path)
    work = cache.work_directory("sft", KEY, "full", "one")
    work.mkdir(parents=True)
    (work / "model").write_text("weights")
    assert cache.find("sft", KEY, "full") is None
    record = committed(cache)
    assert cache.find("sft", KEY, "full") == record
    assert record.seconds == 2.0
    assert (cache.directory("sft", KEY, "full") / "model").read_text() == "weights"
    assert not work.exists()


def test_a_work_directory_with_a_record_is_no_finished_stage(tmp_path):
    cache = StageCache(tmp_path)
    work = cache.work_directory("sft", KEY, "full", "one")
    work.mkdir(parents=True)
    (work / "record.json").write_text("{}")
    assert list(cache.records()) == []


def test_of_two_owners_of_one_stage_the_first_result_is_kept(tmp_path):
    cache = StageCache(tmp_path)
    first = committed(cache, "one", {"loss": 1.0})
    second = committed(cache, "two", {"loss": 2.0})
    assert second.results == first.results == {"loss": 1.0}
    assert len(list(cache.records())) == 1


def test_a_moved_cache_says_where_its_stages_are_now(tmp_path):
    committed(StageCache(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    (record,) = StageCache(tmp_path / "new").records()
    assert record.path.startswith(str(tmp_path / "new"))


def test_keys_depend_on_every_field_and_not_on_their_order():
    assert stage_key("sft", {"a": 1, "b": 2}) == stage_key("sft", {"b": 2, "a": 1})
    assert stage_key("sft", {"a": 1}) != stage_key("dcr", {"a": 1})
    assert stage_key("sft", {"a": 1}) != stage_key("sft", {"a": 1.5})


def test_what_has_no_canonical_form_has_no_identity():
    with pytest.raises(TypeError):
        digest({"object": object()})
    with pytest.raises(ValueError, match="nan"):
        digest({"loss": float("nan")})
    assert canonical_json({"b": (1, 2), "a": None}) == '{"a":null,"b":[1,2]}'


def test_a_difference_names_the_fields():
    assert identity_difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}}) == ["a.b: 1 -> 3", "c: 2 -> absent"]
