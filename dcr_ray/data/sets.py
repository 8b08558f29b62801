"""The data sets by name. A name may also be the path of one's own .jsonl, .json, .csv or .txt file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dcr_ray.data.dataset import DataSet, GitFile, Holds, HubTable, Polarity
from dcr_ray.data.readers import read_columns, read_instructions, read_xstest
from dcr_ray.data.records import SUFFIXES
from dcr_ray.data.splits import Part
from dcr_ray.errors import InputError, Problem, nearest_name


def find_set(name: str) -> DataSet:
    """The set of this name, or one's own file at this path. Raises InputError for a name that is neither."""
    if name in SETS:
        return SETS[name]
    if Path(name).suffix.lower() in SUFFIXES:
        return DataSet(
            # The name is the file's alone: where it lies must not change the identity of the data.
            name=Path(name).name,
            holds="prompts",
            polarity=None,
            file=name,
            reader=read_columns,
            origin="user",
            licence="unknown",
            citation="",
            description="one's own file",
        )
    allowed = ", ".join(SETS) + f", or the path of a {', '.join(SUFFIXES)} file"
    raise InputError([Problem("data set", f"'{name}'", allowed, nearest_name(name, SETS))])


_XSTEST = {
    "holds": "prompts",
    "file": "over_refusal/xstest_prompts.csv",
    "origin": GitFile(
        "paul-rottger/exaggerated-safety", "xstest_prompts.csv", "475f10bf0a3d6a9dfb174b6de1a38afbfdff98a5"
    ),
    "licence": "CC-BY-4.0",
    "citation": "Röttger et al. 2024, XSTest, arXiv 2308.01263",
}
_OR_BENCH = {
    "holds": "prompts",
    "reader": partial(read_columns, kind="category", response=None),
    "licence": "CC-BY-4.0",
    "citation": "Cui et al. 2024, OR-Bench, arXiv 2405.20947",
}
_STL_REPOSITORY = "vinid/safety-tuned-llamas"
_STL_COMMIT = "3ce5779d564ec1f3d87b0bef87261328c8abbd25"
_STL = {
    "polarity": "should_refuse",
    "reader": read_instructions,
    "licence": "CC-BY-NC-4.0",
    "citation": "Bianchi et al. 2024, Safety-Tuned LLaMAs, arXiv 2309.07875",
}
_RED_TEAM = _STL | {
    "file": "training/safety_only_data_Instructions.json",
    "origin": GitFile(_STL_REPOSITORY, "data/training/safety_only_data_Instructions.json", _STL_COMMIT),
    # Both sets are trained on, one in each stage: not even a near duplicate may stand in both.
    "near_duplicates_stay_together": True,
}
_ALPACA = {
    "holds": "pairs",
    "polarity": "should_comply",
    "reader": read_instructions,
    "licence": "CC-BY-NC-4.0",
    "citation": "Taori et al. 2023, Stanford Alpaca",
    "skip_empty_responses": True,
}


def _builtin(name: str, holds: Holds, polarity: Polarity, description: str) -> DataSet:
    return DataSet(
        name=name,
        holds=holds,
        polarity=polarity,
        file=f"builtin/{name.removeprefix('builtin-').replace('-', '_')}.jsonl",
        reader=read_columns,
        origin="package",
        licence="as dcr_ray",
        citation="",
        description=description,
    )


def _stl_evaluation(name: str, file: str, description: str, commit: str = _STL_COMMIT) -> DataSet:
    origin = GitFile(_STL_REPOSITORY, f"data/evaluation/{file}", commit)
    return DataSet(name=name, holds="prompts", file=f"harmful/{file}", origin=origin, description=description, **_STL)


_ALL = (
    _builtin("builtin-seemingly-toxic", "prompts", "should_comply", "harmless prompts that look harmful"),
    _builtin("builtin-toxic", "prompts", "should_refuse", "harmful requests"),
    _builtin("builtin-instructions", "pairs", "should_comply", "everyday instructions with answers"),
    _builtin("builtin-refusals", "pairs", "should_refuse", "harmful requests with safe answers"),
    DataSet(
        name="xstest-safe",
        polarity="should_comply",
        reader=partial(read_xstest, label="safe"),
        description="harmless prompts of ten types that look harmful",
        **_XSTEST,
    ),
    DataSet(
        name="xstest-unsafe",
        polarity="should_refuse",
        reader=partial(read_xstest, label="unsafe"),
        description="the harmful contrasts of xstest-safe; a prompt and its contrast are in the same split",
        **_XSTEST,
    ),
    # One third and two thirds: near the paper's 500 prompts for DCR and 1,000 pairs for SFT in the train splits.
    DataSet(
        name="hh-red-team",
        holds="prompts",
        description="red-team questions of HH-RLHF: the third that is not in stl-safety",
        part=Part(0, 1, 3),
        **_RED_TEAM,
    ),
    DataSet(
        name="stl-safety",
        holds="pairs",
        description="red-team questions of HH-RLHF with safe answers: the two thirds that are not in hh-red-team",
        part=Part(1, 3, 3),
        **_RED_TEAM,
    ),
    DataSet(
        name="alpaca",
        file="training/alpaca_15k.json",
        origin=None,
        description="instructions with answers: 15,130 rows of Alpaca",
        **_ALPACA,
    ),
    DataSet(
        name="alpaca-52k",
        file="training/alpaca_52k.json",
        origin=HubTable("tatsu-lab/alpaca", None, "train"),
        description="instructions with answers: all of Alpaca",
        **_ALPACA,
    ),
    DataSet(
        name="coconot-contrast",
        holds="prompts",
        polarity="should_comply",
        file="over_refusal/coconot_contrast_eval.jsonl",
        reader=partial(read_columns, kind="subcategory", response=None),
        origin=HubTable("allenai/coconot", "contrast", "test", "3e9839f59dbfcc4a20d7891ed33d191d1d2bfaa4"),
        licence="MIT",
        citation="Brahman et al. 2024, CoCoNot, arXiv 2407.12043",
        description="answerable neighbours of requests that should be declined",
    ),
    DataSet(
        name="or-bench-hard-1k",
        polarity="should_comply",
        file="over_refusal/or-bench-hard-1k.csv",
        origin=HubTable("bench-llm/or-bench", "or-bench-hard-1k", "train"),
        description="harmless prompts that strong models refuse",
        **_OR_BENCH,
    ),
    DataSet(
        name="or-bench-toxic",
        polarity="should_refuse",
        file="harmful/or-bench-toxic.csv",
        origin=HubTable("bench-llm/or-bench", "or-bench-toxic", "train"),
        description="the harmful prompts from the source of or-bench-hard-1k",
        near_duplicates_stay_together=True,
        **_OR_BENCH,
    ),
    DataSet(
        name="oktest",
        holds="prompts",
        polarity="should_comply",
        file="over_refusal/OKTest.csv",
        reader=partial(read_columns, response=None),
        origin=GitFile("InvokerStark/OverKill", "data/OKTest.csv", "51809bb9e7c029d7cc1247389e0578da92e784e2"),
        licence="none stated",
        citation="Shi et al. 2024, Navigating the OverKill in Large Language Models, arXiv 2401.17633",
        description="harmless questions with harsh words",
    ),
    DataSet(
        name="phtest",
        holds="prompts",
        polarity="should_comply",
        file="over_refusal/PHTest-200.json",
        reader=partial(read_columns, id="ID", kind="Harmfulness", response=None),
        origin=GitFile(
            "SparkShieldLab/OverRefusalToolkit", "data/PHTest-200.json", "955ae2d56002f2ef3d26ded61e3b93ed2cb3964b"
        ),
        licence="MIT",
        citation="An et al. 2024, PHTest, arXiv 2409.00598",
        description="200 generated prompts that look harmful, all harmless",
    ),
    DataSet(
        name="advbench",
        holds="prompts",
        polarity="should_refuse",
        file="harmful/advbench.csv",
        reader=partial(read_columns, prompt="goal", response=None),
        origin=GitFile("llm-attacks/llm-attacks", "data/advbench/harmful_behaviors.csv"),
        licence="MIT",
        citation="Zou et al. 2023, arXiv 2307.15043",
        description="harmful behaviours; many say the same in other words",
        near_duplicates_stay_together=True,
    ),
    _stl_evaluation("i-malicious-instructions", "I-MaliciousInstructions.json", "harmful instructions"),
    _stl_evaluation("i-cona", "I-CoNa.json", "requests for hateful texts"),
    _stl_evaluation("i-controversial", "I-Controversial.json", "requests for texts on controversial topics"),
    _stl_evaluation("q-harm", "Q-Harm.json", "harmful questions", "347bea9eaeb8cd82214fe604f1f9b1b134acd869"),
    DataSet(
        name="harmfulq",
        holds="prompts",
        polarity="should_refuse",
        file="harmful/dangerousqa.json",
        reader=read_columns,
        origin=GitFile("declare-lab/red-instruct", "harmful_questions/dangerousqa.json"),
        licence="Apache-2.0",
        citation="Shaikh et al. 2023, arXiv 2212.08061",
        description="harmful questions, also called DangerousQA",
    ),
    DataSet(
        name="malicious-instruct",
        holds="prompts",
        polarity="should_refuse",
        file="harmful/malicious_instruct.txt",
        reader=read_columns,
        origin=GitFile("Princeton-SysML/Jailbreak_LLM", "data/MaliciousInstruct.txt"),
        licence="none stated",
        citation="Huang et al. 2023, arXiv 2310.06987",
        description="harmful questions",
    ),
)
SETS: dict[str, DataSet] = {data_set.name: data_set for data_set in _ALL}
