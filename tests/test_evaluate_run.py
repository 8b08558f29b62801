"""The generate and judge stages on a real engine with a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dcr_ray.data.examples import Pair, Prompt
from dcr_ray.evaluate.jobs import GenerateJob, JudgeJob
from dcr_ray.evaluate.run import GENERATIONS_FILE, run_generate
from dcr_ray.evaluate.transformers_engine import TransformersEngine
from dcr_ray.judge_spec import LlmSpec, StringSpec, VoteSpec
from dcr_ray.judges.run import OUTCOMES_FILE, run_judge
from dcr_ray.outcomes import Outcomes
from dcr_ray.weights.tiny import build_tiny_model


def prompts(name: str, count: int = 5) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"{name}{i}", f"What is {name} number {i}?", "", f"{name}{i}", name) for i in range(count))


ASKED = {"compliance": prompts("bread") + prompts("rain"), "defense": prompts("harm")}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    build_tiny_model(folder)
    engine = TransformersEngine(folder, precision="fp32")
    yield engine, folder
    engine.close()


@pytest.fixture
def job(engine, tmp_path):
    capability = (Pair("p", "Say hello.", "Hello.", "", "p", "pairs"),)
    return GenerateJob(str(engine[1]), ASKED, capability, "", 6, 200, str(tmp_path))


def rows(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, GENERATIONS_FILE).read_text().splitlines()]


def test_a_repeat_answers_in_another_order_and_is_written_in_the_first(engine, job, tmp_path):
    asked = []

    class Recording:
        def __getattr__(self, name):
            return getattr(engine[0], name)

        def generate(self, tokens, **options):
            asked.append([tuple(each) for each in tokens])
            return engine[0].generate(tokens, **options)

    run_generate(job, Recording())
    first = rows(job.output_dir)
    (tmp_path / "again").mkdir()
    again = replace(job, repeat=1, output_dir=str(tmp_path / "again"))
    run_generate(again, Recording())
    assert asked[0] != asked[1] and sorted(asked[0]) == sorted(asked[1])
    assert [(row["set"], row["id"], row["text"]) for row in rows(again.output_dir)] == [
        (row["set"], row["id"], row["text"]) for row in first
    ]


def test_the_refusal_probability_is_measured_where_it_is_asked_for_and_reaches_the_outcomes(engine, job, tmp_path):
    results = run_generate(replace(job, refusal_probability=True), engine[0])
    measured = [row["refusal_probability"] for row in rows(job.output_dir)]
    assert len(measured) == 15 and all(0 <= value <= 1 for value in measured)
    assert results["refusal_beginnings"]["identity"]
    (tmp_path / "judged").mkdir()
    judged = run_judge(judge_job(job, tmp_path / "judged"))
    frame = Outcomes.read(tmp_path / "judged" / OUTCOMES_FILE).frame
    assert frame["refusal_probability"].tolist() == pytest.approx(measured)
    assert judged["metrics"]["defense/refusal_probability"] == pytest.approx(sum(measured[10:]) / 5)
    run_generate(job, engine[0])
    assert "refusal_probability" not in rows(job.output_dir)[0]


def judge_job(job: GenerateJob, folder: Path, judges=(StringSpec(),), judge: str = "string") -> JudgeJob:
    return JudgeJob(
        job.output_dir, ASKED, "search", frozenset({"bread"}), judges, judge, str(folder / "answers.jsonl"), str(folder)
    )


def test_the_seconds_of_the_parts_are_those_of_the_stage(engine, job):
    seconds = run_generate(job, engine[0])["seconds"]
    total = seconds.pop("total")
    assert list(seconds) == ["weights_to_engine", "data", "prefill", "decode", "refusal_probability", "score"]
    assert sum(seconds.values()) == pytest.approx(total)
    assert seconds["prefill"] > 0 and seconds["decode"] > 0 and seconds["data"] >= 0


def test_answers_that_ended_early_are_judged_as_the_whole_ones_are(engine, job, tmp_path):
    """The tiny model's answers are noise in which nothing is decided, so loops are put in their place."""

    class Looping:
        def __getattr__(self, name):
            return getattr(engine[0], name)

        def generate(self, tokens, *, decided=None, **options):
            answers = engine[0].generate(tokens, **options)
            looped = [answer._replace(text="no " * 20, token_count=20) for answer in answers]
            if decided is None:
                return looped
            assert not decided(0, "no no no ")
            assert all(decided(place, "no " * 8) for place in range(len(tokens)))
            return [answer._replace(text="no " * 8, token_count=8, finish_reason="decided") for answer in looped]

    found = {}
    for stop in (False, True):
        folder = tmp_path / str(stop)
        folder.mkdir()
        asked = replace(job, stop_when_decided=stop, output_dir=str(folder), repeat=1)
        results = run_generate(asked, Looping())
        assert results["decided"] == (15 if stop else 0)
        (folder / "judged").mkdir()
        judged = run_judge(judge_job(asked, folder / "judged"))
        frame = Outcomes.read(folder / "judged" / OUTCOMES_FILE).frame
        found[stop] = frame["verdict"].tolist(), judged["metrics"]["defense/cut_share"]
    assert found[True][0] == found[False][0] == ["degenerate"] * 15
    assert found[True][1] == 0


def test_the_sets_and_the_distribution_of_every_answer_are_in_the_outcomes(engine, job, tmp_path):
    run_generate(job, engine[0])
    metrics = run_judge(judge_job(job, tmp_path))["metrics"]
    assert {"compliance.bread", "compliance.rain", "compliance.in_distribution", "compliance.macro"} <= set(metrics)
    assert metrics["compliance.in_distribution"] == metrics["compliance.bread"]
    frame = Outcomes.read(tmp_path / OUTCOMES_FILE).frame
    assert frame.groupby("benchmark", observed=True)["in_distribution"].first().to_dict() == {
        "bread": True,
        "harm": False,
        "rain": False,
    }


def test_a_vote_asks_the_judges_that_it_names(engine, job, tmp_path):
    run_generate(job, engine[0])
    judges = (StringSpec(), StringSpec(name="second"), VoteSpec(name="panel", of=("string", "second")))
    alone = run_judge(judge_job(job, tmp_path))["metrics"]
    assert run_judge(judge_job(job, tmp_path, judges, "panel"))["metrics"] == alone


def test_an_endpoint_that_is_down_fails_the_stage_and_commits_no_verdict(engine, job, tmp_path):
    from dcr_ray.errors import DcrError

    run_generate(job, engine[0])
    nobody = LlmSpec(name="nobody", model="m", endpoint="http://127.0.0.1:9/v1", key_variable=None, retries=0)
    with pytest.raises(DcrError, match="127.0.0.1:9"):
        run_judge(judge_job(job, tmp_path, (nobody,), "nobody"))
    assert not (tmp_path / OUTCOMES_FILE).exists()
