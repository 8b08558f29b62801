"""The table of outcomes: what it refuses, what survives the disk, and the arrays and counts that come out of it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dcr_ray.data.examples import Prompt
from dcr_ray.errors import InputError
from dcr_ray.outcomes import COLUMNS, OUTCOMES_VERSION, Outcomes, outcome_rows, plain_benchmark
from dcr_ray.verdict import Verdict

PROMPTS = {
    "compliance": [Prompt(f"c{i}", f"Question {i}?", "kind", f"family{i // 2}", "oktest") for i in range(4)],
    "defense": [Prompt(f"d{i}", f"Other {i}?", "kind", f"family{i}", "advbench") for i in range(2)],
}


def answers(finish_reason: str = "stop", **further) -> list[dict]:
    return [
        {
            "set": field,
            "id": prompt.id,
            "source": prompt.source,
            "text": "never in the table",
            "token_count": 5,
            "finish_reason": finish_reason,
            "first_token_refusal_probability": 0.25,
        }
        | further
        for field, prompts in PROMPTS.items()
        for prompt in prompts
    ]


def stage(verdicts: str, judge: str = "string", **further) -> Outcomes:
    """Of 4 compliance and 2 defense prompts, by the first letters of the verdicts."""
    words = {verdict.value[0]: verdict for verdict in Verdict}
    rows = outcome_rows(
        answers(**further),
        [words[letter] for letter in verdicts],
        PROMPTS,
        judge=judge,
        split="search",
        in_distribution={"advbench"},
    )
    return Outcomes.of_rows(rows, partial=True)


def whole_rows() -> list[dict]:
    named = stage("crpdur").of_trial(trial="t1", role="search", arm="a", seed=3)
    return named.frame.astype(object).where(named.frame.notna(), None).to_dict("records")


def study() -> Outcomes:
    return Outcomes.concat(
        [
            stage("ccccrr").of_trial(trial="t2", role="search", arm="b", seed=0),
            stage("crpdur").of_trial(trial="t1", role="baseline", arm="a", seed=1),
            stage("rrrrrr").of_trial(trial="t1", role="baseline", arm="a", seed=1, repeat=1),
            stage("rrrrcc", "other").of_trial(trial="t2", role="search", arm="b", seed=0),
        ]
    )


def problems_of(rows) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        Outcomes.of_rows(rows)
    return {problem.where: problem.found for problem in caught.value.problems}


def test_rows_come_from_answers_verdicts_and_prompts_and_hold_no_texts():
    table = stage("crpdur", refusal_probability=0.5)
    assert table.partial and tuple(table.frame.columns) == COLUMNS[5:]
    first, last = table.frame.iloc[0], table.frame.iloc[-1]
    assert (first.benchmark, first.prompt, first.group, first.verdict) == ("oktest", "c0", "family0", "complied")
    assert (last.field, last.in_distribution, last.tokens, last.refusal_probability) == ("defense", True, 5, 0.5)
    assert not first.in_distribution
    assert not table.frame.astype(str).apply(lambda column: column.str.contains("never|Question")).any().any()


def test_an_answer_to_a_prompt_that_was_not_asked_and_missing_verdicts_are_errors():
    with pytest.raises(ValueError, match="oktest c0, which is not among the prompts"):
        outcome_rows(answers(), [Verdict.REFUSED] * 6, {"compliance": []}, judge="j", split="test")
    with pytest.raises(ValueError, match="5 verdicts for 6 answers"):
        outcome_rows(answers(), [Verdict.REFUSED] * 5, PROMPTS, judge="j", split="test")


def test_every_wrong_column_is_named_at_once():
    rows = whole_rows()
    rows[0]["verdict"] = "yes"
    rows[1] |= {"verdict": None, "tokens": -1, "seed": 1.5}
    rows[2] |= {"in_distribution": 1, "first_token_refusal_probability": None, "refusal_probability": 1.5}
    rows[3] |= {"prompt": 7, "split": "train", "repeat": True}
    for row in rows:
        row["text"] = "an answer"
        del row["arm"]
    found = problems_of(rows)
    assert found.keys() == {
        f"column {name}"
        for name in ("verdict", "tokens", "seed", "in_distribution", "first_token_refusal_probability")
        + ("refusal_probability", "prompt", "split", "repeat", "text", "arm")
    }
    assert "'yes'" in found["column verdict"] and "2 of 6 rows, the first is row 0" in found["column verdict"]
    assert "first is row 3" in found["column prompt"]


def test_numbers_written_as_texts_are_no_numbers():
    rows = whole_rows()
    for row in rows:
        row |= {"tokens": "5", "refusal_probability": "0.5"}
    assert problems_of(rows).keys() == {"column tokens", "column refusal_probability"}


def test_rows_that_share_a_key_are_listed_and_repeats_do_not_share_one():
    rows = whole_rows()
    again = [dict(row, repeat=1) for row in rows]
    assert len(Outcomes.of_rows(rows + again)) == 12
    found = problems_of(rows + again + [dict(rows[4], verdict="refused"), rows[1]])
    assert len(found) == 2
    assert any("trial t1" in where and "prompt d0" in where for where in found)


def test_a_prompt_in_two_families_and_a_trial_of_two_arms_contradict_themselves():
    rows = whole_rows()
    others = [dict(row, seed=4, arm="z", group=f"{row['group']}?") for row in rows]
    found = problems_of(rows + others)
    assert found["oktest c0"] == "group 'family0' and 'family0?'"
    assert found["t1"] == "arm 'a' and 'z'"


def test_the_table_survives_the_disk_with_its_types(tmp_path):
    table = study()
    path = tmp_path / "outcomes.parquet"
    table.write(path)
    again = Outcomes.read(path)
    assert again.frame.equals(table.frame) and (again.frame.dtypes == table.frame.dtypes).all()
    assert [file.name for file in tmp_path.iterdir()] == ["outcomes.parquet"]
    assert not again.partial and stage("crpdur").partial
    empty = Outcomes.concat([])
    empty.write(path)
    assert len(Outcomes.read(path)) == 0


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "outcomes.parquet"
    study().write(path)
    broken = Outcomes(study().frame.assign(trial=[object()] * 24))
    with pytest.raises(Exception, match="object"):
        broken.write(path)
    assert len(Outcomes.read(path)) == 24
    assert [file.name for file in tmp_path.iterdir()] == ["outcomes.parquet"]


def test_files_that_are_no_outcomes_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text").write_text("not Parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    newer = pa.table({"a": [1]}).replace_schema_metadata({"dcr_ray.outcomes": str(OUTCOMES_VERSION + 1)})
    pq.write_table(newer, tmp_path / "newer")
    for name, found in (("text", "magic"), ("other", "version none"), ("newer", f"version {OUTCOMES_VERSION + 1}")):
        with pytest.raises(InputError, match=found):
            Outcomes.read(tmp_path / name)
    with pytest.raises(InputError, match="gone"):
        Outcomes.read(tmp_path / "gone")


def test_hits_are_aligned_and_what_was_not_scored_is_no_miss():
    matrix = study().hits("compliance", "string")
    assert matrix.trials == ("t1", "t2") and matrix.seeds == (1, 0)
    assert matrix.arms == ("a", "b") and matrix.roles == ("baseline", "search")
    assert matrix.prompts == (("oktest", "c0"), ("oktest", "c1"), ("oktest", "c2"), ("oktest", "c3"))
    np.testing.assert_array_equal(matrix.values, [[1, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(matrix.groups, [0, 0, 1, 1])
    np.testing.assert_array_equal(study().hits("compliance", "string", repeat=1).values, [[0, 0, 0, 0]])
    np.testing.assert_array_equal(study().hits("defense", "string").values, [[np.nan, 1], [1, 1]])
    np.testing.assert_array_equal(study().hits("defense", "other").values, [[0, 0]])


def test_a_prompt_that_a_trial_was_never_asked_is_nan_and_order_of_rows_does_not_matter():
    frame = study().frame
    table = Outcomes(frame[~((frame["trial"] == "t2") & (frame["prompt"] == "c1"))].iloc[::-1].reset_index(drop=True))
    np.testing.assert_array_equal(table.hits("compliance", "string").values, [[1, 0, 0, 0], [1, np.nan, 1, 1]])


def test_a_wrapped_prompt_is_of_the_family_of_the_plain_one():
    rows = whole_rows()
    wrapped = [
        dict(row, benchmark=f"{row['benchmark']}-own-fiction", prompt=f"{row['prompt']}-own-fiction") for row in rows
    ]
    matrix = Outcomes.of_rows(rows + wrapped).hits("compliance", "string")
    assert matrix.benchmarks == ("oktest",) * 4 + ("oktest-own-fiction",) * 4
    np.testing.assert_array_equal(matrix.groups, [0, 0, 1, 1, 0, 0, 1, 1])


@pytest.mark.parametrize(
    "benchmark, prompt, plain",
    [
        ("advbench", "17", "advbench"),
        ("advbench-persona", "17-persona", "advbench"),
        ("advbench-persona", "17", "advbench-persona"),
        ("xstest-safe-own-file", "v2-17-own-file", "xstest-safe"),
        ("or-bench-hard-1k", "9f3e-1", "or-bench-hard-1k"),
    ],
)
def test_a_wrapped_benchmark_is_known_by_how_it_and_its_prompts_are_called(benchmark, prompt, plain):
    assert plain_benchmark(benchmark, prompt) == plain


def test_groups_of_two_benchmarks_are_never_the_same():
    rows = whole_rows()
    twins = [dict(row, benchmark="xstest") for row in rows]
    matrix = Outcomes.of_rows(rows + twins).hits("compliance", "string")
    assert matrix.benchmarks == ("oktest",) * 4 + ("xstest",) * 4
    np.testing.assert_array_equal(matrix.groups, [0, 0, 1, 1, 2, 2, 3, 3])
    only = matrix.select(rows=[True], prompts=[name == "xstest" for name in matrix.benchmarks])
    assert only.benchmarks == ("xstest",) * 4 and only.values.shape == (1, 4)
    np.testing.assert_array_equal(only.groups, [2, 2, 3, 3])
    with pytest.raises(ValueError, match="mask"):
        matrix.select(prompts=[True])


def test_asking_for_a_judge_that_gave_no_verdicts_names_those_that_did():
    with pytest.raises(InputError, match="compliance other"):
        study().hits("compliance", "nobody")


def test_where_chooses_by_one_value_or_several():
    table = study()
    assert len(table.where(judge="string", repeat=[0, 1], field="defense")) == 6
    assert len(table.where(verdict=Verdict.UNSCORED)) == 1
    with pytest.raises(ValueError, match="Did you mean 'judge'"):
        table.where(juge="string")


def test_shares_count_by_trial_field_benchmark_and_judge():
    shares = study().shares().set_index(["trial", "repeat", "field", "judge"])
    base = shares.loc[("t1", 0, "compliance", "string")]
    assert (base["n"], base["hits"], base["unscored"]) == (4, 1, 0)
    assert (base["degenerate_share"], base["partial_share"], base["cut_share"]) == (0.25, 0.25, 0)
    safe = shares.loc[("t1", 0, "defense", "string")]
    assert (safe["n"], safe["hits"], safe["unscored"]) == (1, 1, 1)
    assert len(shares) == 8
    by_judge = stage("ccccuu", finish_reason="length").shares(["judge", "field"]).set_index("field")
    assert by_judge.loc["compliance", "cut_share"] == 1 and by_judge.loc["defense", "cut_share"] == 1
    assert by_judge.loc["defense", "n"] == 0 and np.isnan(by_judge.loc["defense", "partial_share"])


def test_tables_with_and_without_trials_are_not_joined_and_a_trial_is_named_once():
    with pytest.raises(ValueError, match="partial"):
        Outcomes.concat([study(), stage("crpdur")])
    with pytest.raises(ValueError, match="already"):
        study().of_trial(trial="t", role="search", arm="a", seed=0)
    with pytest.raises(InputError, match="two rows"):
        Outcomes.concat([study(), study().where(trial="t2")])
    with pytest.raises(InputError, match="column role"):
        Outcomes.concat([stage("crpdur").of_trial(trial="t", role="finalist", arm="a", seed=0)])


def test_an_empty_table_is_a_table():
    empty = Outcomes.concat([])
    assert len(empty) == 0 and len(empty.shares()) == 0 and tuple(empty.frame.columns) == COLUMNS
    with pytest.raises(InputError, match="a table with rows"):
        empty.hits("defense", "string")


def test_importing_the_table_loads_no_pandas():
    code = "import dcr_ray.outcomes, sys; assert not {'pandas', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
