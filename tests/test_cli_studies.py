"""Commands about studies of this machine that need no study to run."""

from __future__ import annotations

import json
from pathlib import Path

from dcr_ray.cli.main import main
from dcr_ray.study import load_study
from dcr_ray.sweep import driver_lock

SPEC = Path(__file__).resolve().parents[1] / "search_spaces" / "quickstart.yaml"


def test_status_without_a_study_lists_those_of_the_storage_folder_and_who_runs_them(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.yaml").write_text(load_study(SPEC, [f"study={name}"]).as_yaml())
    with driver_lock(tmp_path / "two"):
        assert main(["status", "--storage", str(tmp_path), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert main(["status", "--storage", str(tmp_path)]) == 0
    assert [(row["study"], bool(row["driver"])) for row in rows] == [("one", False), ("two", True)]
    assert "process" in capsys.readouterr().out


def test_status_and_stop_of_a_study_that_is_not_there_are_bad_input_with_the_nearest_name(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.yaml").write_text(load_study(SPEC, ["study=mine"]).as_yaml())
    for command in ("status", "stop"):
        assert main([command, "mime", "--storage", str(tmp_path)]) == 2
        assert "Did you mean 'mine'?" in capsys.readouterr().err
