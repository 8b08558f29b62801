"""The command line: its commands with their examples, and exit codes 0 done, 1 failed, 2 bad input.

Only parsing happens here; a command's module is imported when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from dcr_ray.cli import arguments
from dcr_ray.errors import DcrError, InputError

_Add = Callable[[argparse.ArgumentParser], None]


def main(line: Sequence[str] | None = None) -> int:
    """Run one command, by default that of the process. Returns its exit code."""
    options = build_parser().parse_args(line)
    # A command with actions of its own is run by the module of its action.
    module, _, function = (getattr(options, "runs", None) or options.run).partition(":")
    try:
        return getattr(importlib.import_module(f"dcr_ray.cli.{module}"), function)(options)
    except InputError as error:
        print(f"dcr-ray: {error}", file=sys.stderr)
        return 2
    except DcrError as error:
        print(f"dcr-ray: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dcr-ray: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`); Python must not complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dcr-ray",
        description="Hyper-parameter studies of DCR (Discernment via Contrastive Refinement) on Ray.",
        epilog="Exit codes: 0 done, 1 failed, 2 bad input. `dcr-ray COMMAND --help` shows examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from dcr_ray import __version__

    parser.add_argument("--version", action="version", version=f"dcr-ray {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, run, summary, examples, add in _COMMANDS:
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog="Examples:\n" + "\n".join(f"  {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(command)
        command.set_defaults(run=run)
    return parser


_COMMANDS: tuple[tuple[str, str, str, tuple[str, ...], _Add], ...] = (
    (
        "sweep",
        "studies:sweep",
        "run a study, or go on with it: the same command resumes",
        (
            "dcr-ray sweep search_spaces/quickstart.yaml",
            "dcr-ray sweep search_spaces/quickstart.yaml --set search.trials=20",
            "dcr-ray sweep search_spaces/smollm2-135m.yaml --set data.root=DATA --address auto",
            "dcr-ray sweep STUDY.yaml --simulate --cluster clusters/aws-h100.yaml --preemptions 0.05",
        ),
        arguments.sweep,
    ),
    (
        "plan",
        "studies:plan",
        "say what a study will run, share and need, without starting anything",
        (
            "dcr-ray plan search_spaces/quickstart.yaml",
            "dcr-ray plan search_spaces/quickstart.yaml --json",
            "dcr-ray plan search_spaces/llama-3.1-70b.yaml --cluster clusters/aws-h100.yaml",
        ),
        arguments.plan,
    ),
    (
        "submit",
        "jobs:submit",
        "run a study as a job on a Ray head",
        (
            "dcr-ray submit search_spaces/quickstart.yaml --address http://head:8265",
            "dcr-ray submit STUDY.yaml --address http://head:8265 --detach --set storage=/shared/runs",
            "dcr-ray submit STUDY.yaml --address http://head:8265 --working-dir . --exclude drafts --env HF_TOKEN",
        ),
        arguments.submit,
    ),
    (
        "status",
        "studies:status",
        "list every trial with its state, recipe, metrics and stage records",
        (
            "dcr-ray status quickstart",
            "dcr-ray status quickstart --json | python -m json.tool",
            "dcr-ray status quickstart --address http://head:8265",
            "dcr-ray status --address http://head:8265",
        ),
        arguments.status,
    ),
    (
        "logs",
        "jobs:logs",
        "show what a study that was submitted has printed",
        (
            "dcr-ray logs quickstart --address http://head:8265 --tail 50",
            "dcr-ray logs quickstart --address http://head:8265 --follow",
        ),
        arguments.logs,
    ),
    (
        "report",
        "studies:report",
        "write report.md and the plots of a study, ended or not",
        ("dcr-ray report quickstart",),
        arguments.report,
    ),
    (
        "confirm",
        "confirm:confirm",
        "re-train the finalists and the STL baseline with fresh seeds and judge them on the test split, once",
        (
            "dcr-ray confirm smollm2-135m --top 2 --seeds 3",
            "dcr-ray confirm smollm2-135m --top 2 --seeds 3 --judges judges.yaml   # the same opening, more judges",
        ),
        arguments.confirm,
    ),
    (
        "judge",
        "",
        "ask judges about answers that are there, train one, or hold one against human labels",
        (
            "dcr-ray judge run smollm2-135m --judges judges.yaml",
            "dcr-ray judge train --file xstest_v2_completions_gpt4.csv --file more.csv --out judges/mine",
            "dcr-ray judge calibrate --judge judges/mine --file labelled.csv --leave-one-model-out --out mine.json",
        ),
        arguments.judge,
    ),
    (
        "stop",
        "studies:stop",
        "end a study that runs on this machine or at a head; it can be gone on with",
        ("dcr-ray stop quickstart", "dcr-ray stop quickstart --address http://head:8265"),
        arguments.stop,
    ),
    (
        "train",
        "stages:train",
        "train one recipe by hand, without a search",
        (
            "dcr-ray train search_spaces/quickstart.yaml --set recipe.dcr.layer_depth=0.6 --out model",
            "dcr-ray train search_spaces/quickstart.yaml --stl",
            "dcr-ray train search_spaces/quickstart.yaml --trial t003 --out best",
        ),
        arguments.train,
    ),
    (
        "eval",
        "stages:evaluate",
        "generate, judge and score one model by hand",
        (
            "dcr-ray eval search_spaces/quickstart.yaml",
            "dcr-ray eval search_spaces/quickstart.yaml --model model --split test",
        ),
        arguments.eval,
    ),
    (
        "scale",
        "scale:run",
        "scaling studies: a ladder of models and data sizes, laws, forecasts and back-tests",
        (
            "dcr-ray scale plan search_spaces/ladder_qwen2.5.yaml --set study.data.root=DATA --cluster CLUSTER.yaml",
            "dcr-ray scale run search_spaces/ladder_local.yaml --set study.data.root=DATA",
            "dcr-ray scale next LADDER.yaml --cluster CLUSTER.yaml --budget 500",
            "dcr-ray scale forecast LADDER.yaml      # then add the target to the ladder, run again, and backtest",
        ),
        arguments.scale,
    ),
    (
        "diagnose",
        "diagnose:diagnose",
        "say why a model refuses what it does: kernel between prompts, separability per layer",
        (
            "dcr-ray diagnose smollm2-135m-instruct --out diagnosis",
            "dcr-ray diagnose model --against BASE --spec STUDY.yaml --set data.root=DATA --out diagnosis",
            "dcr-ray diagnose meta-llama/Llama-3.1-70B --streamed --scopes last2+head,head --prompts 10",
        ),
        arguments.diagnose,
    ),
    (
        "data",
        "inventory:data",
        "list, fetch or check data sets, or write the ledger of what they share",
        (
            "dcr-ray data list",
            "dcr-ray data fetch xstest-safe alpaca --root data",
            "dcr-ray data check xstest-safe advbench --root data",
            "dcr-ray data ledger search_spaces/smollm2-135m.yaml --root data",
        ),
        arguments.data,
    ),
    (
        "models",
        "inventory:models",
        "list, fetch or cut base models",
        (
            "dcr-ray models fetch smollm2-135m-instruct",
            "dcr-ray models list",
            "dcr-ray models cut smollm2-135m-instruct --layers 12 --out models/smollm2-first-12-layers",
        ),
        arguments.models,
    ),
    (
        "mlflow-sync",
        "studies:mlflow_sync",
        "send what a tracking server missed",
        (
            "dcr-ray mlflow-sync quickstart",
            "dcr-ray mlflow-sync quickstart --to http://mlflow:5000",
        ),
        arguments.sync,
    ),
    (
        "capability",
        "capability:capability",
        "measure accuracies on MMLU, ARC, OpenBookQA and PIQA through lm-eval",
        (
            "dcr-ray capability MODEL --tasks arc_easy,piqa --limit 200",
            "dcr-ray capability MODEL --tasks mmlu --root DATA --json",
        ),
        arguments.capability,
    ),
    (
        "winrate",
        "winrate:winrate",
        "let a judge compare two models' answers (AlpacaEval, raw and length-controlled)",
        (
            "dcr-ray winrate DCR_MODEL STL_MODEL --instructions alpaca_eval.json \\\n"
            "      --judge-endpoint http://127.0.0.1:8000/v1 --judge-model NAME --out answers",
            "dcr-ray winrate dcr.json stl.json --judge-endpoint URL --judge-model NAME --json",
        ),
        arguments.winrate,
    ),
    (
        "cluster",
        "",
        "check and fill in the files that describe clusters: Ray's launcher, KubeRay, Slurm, SkyPilot",
        (
            "dcr-ray cluster list",
            "dcr-ray cluster validate clusters/*",
            "dcr-ray cluster render clusters/aws-h100.yaml --name mine --workers 1 --spot --out mine.yaml",
            "dcr-ray cluster schemas",
        ),
        arguments.cluster,
    ),
    (
        "doctor",
        "jobs:doctor",
        "check this machine, or a Ray and all its nodes, and say what to do about what fails",
        (
            "dcr-ray doctor",
            "dcr-ray doctor --address 10.0.0.1:6379",
            "dcr-ray doctor STUDY.yaml --address http://head:8265 --storage /shared/runs --tracking http://mlflow:5000",
        ),
        arguments.doctor,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
