"""What each command takes. The functions of one command, or of several, add their arguments to its parser."""

from __future__ import annotations

import argparse
from pathlib import Path


def spec(command: argparse.ArgumentParser, optional: bool = False) -> None:
    command.add_argument("spec", metavar="SPEC", nargs="?" if optional else None, help="YAML file of the study")
    command.add_argument(
        "--set",
        dest="overrides",
        metavar="A.B=C",
        action="append",
        default=[],
        help="override one value; may be repeated",
    )


def json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON document on stdout instead of a table")


def study(command: argparse.ArgumentParser, optional: bool = False) -> None:
    command.add_argument(
        "study",
        metavar="STUDY",
        nargs="?" if optional else None,
        help="name of a study, or the YAML file it is run from" + (" (default: list all)" if optional else ""),
    )
    command.add_argument(
        "--storage", metavar="FOLDER", help="folder of studies (default: $DCR_RAY_STORAGE, then ./runs)"
    )


def plan(command: argparse.ArgumentParser) -> None:
    spec(command)
    command.add_argument(
        "--cluster", metavar="FILE", help="plan for the cluster that this file describes: shape, GPU-hours, money"
    )
    json(command)


def sweep(command: argparse.ArgumentParser) -> None:
    spec(command)
    command.add_argument("--address", help="Ray to run on (default: $RAY_ADDRESS, else one is started here)")
    json(command)
    rehearsal = command.add_argument_group("rehearsal", "nothing is trained; the study is called NAME-simulated")
    rehearsal.add_argument("--simulate", action="store_true", help="rehearse the study in virtual time")
    rehearsal.add_argument("--cluster", metavar="FILE", help="on the cluster that it describes (default: this machine)")
    rehearsal.add_argument("--nodes", type=int, metavar="N", help="with so many nodes that do the work")
    rehearsal.add_argument(
        "--preemptions", type=float, default=0.0, metavar="RATE", help="a node's an hour, with notice (default: 0)"
    )
    rehearsal.add_argument(
        "--failures", type=float, default=0.0, metavar="RATE", help="a node's an hour, without notice (default: 0)"
    )
    rehearsal.add_argument("--table", metavar="CSV", help="what recipes find (default: a made-up formula)")
    rehearsal.add_argument("--seed", type=int, default=0, help="of the nodes' fates")


def submit(command: argparse.ArgumentParser) -> None:
    spec(command)
    command.add_argument("--address", required=True, metavar="URL", help="the head's job server, http://HEAD:8265")
    command.add_argument("--detach", action="store_true", help="return as soon as the job is accepted")
    command.add_argument(
        "--working-dir",
        metavar="DIR",
        help="send this folder's code and data too, without results, weights and caches (default: the spec alone)",
    )
    command.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="what of --working-dir is not sent: a name, or a path from there; may be repeated",
    )
    command.add_argument(
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="a variable for the job, without a value that of this shell; whoever may ask the head can read it",
    )
    command.add_argument("--entrypoint-cpus", type=float, metavar="N", help="CPUs reserved for the study's driver")
    command.add_argument(
        "--entrypoint-resources",
        metavar="JSON",
        help="resources of the node for the driver (default: TRAIN_DRIVER_RESOURCE where a node has it)",
    )
    json(command)


def head(command: argparse.ArgumentParser, required: bool = False) -> None:
    where = "" if required else " (default: this machine's studies)"
    command.add_argument(
        "--address", metavar="URL", required=required, help=f"job server of the head it was sent to{where}"
    )


def status(command: argparse.ArgumentParser) -> None:
    study(command, optional=True)
    head(command)
    command.add_argument("--job-only", action="store_true", help="with --address: leave out the trials (quicker)")
    json(command)


def logs(command: argparse.ArgumentParser) -> None:
    command.add_argument("study", metavar="STUDY", help="name of a study")
    head(command, required=True)
    command.add_argument("-f", "--follow", action="store_true", help="go on until the job ends; Ctrl-C leaves it alone")
    command.add_argument("--tail", type=int, metavar="N", help="begin with the last N lines")
    command.add_argument("--attempt", type=int, metavar="K", help="the job of the K-th submission (default: the last)")


def report(command: argparse.ArgumentParser) -> None:
    study(command)
    command.add_argument("--out", metavar="FOLDER", help="where report.md and the plots go (default: reports/STUDY)")


def judges(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--judges", metavar="FILE", type=Path, help="YAML list of further judges, as under `judges:` of a study"
    )


def judge(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True)
    run = actions.add_parser("run", help="ask judges about the answers that a study has")
    study(run)
    judges(run)
    run.add_argument("--judge", metavar="NAME", action="append", default=[], help="this one alone; may be repeated")
    json(run)
    run.set_defaults(runs="confirm:judge")
    train = actions.add_parser("train", help="train a judge on labelled responses")
    calibrate = actions.add_parser("calibrate", help="hold a judge against human labels")
    calibrate.add_argument(
        "--judge", metavar="JUDGE", required=True, help="string, a trained judge's folder, or a YAML file"
    )
    for action in (train, calibrate):
        action.add_argument(
            "--file", metavar="FILE", action="append", required=True, help="labelled responses; may be repeated"
        )
        action.add_argument(
            "--label", metavar="THEIRS=OURS", action="append", default=[], help="what a label of the files stands for"
        )
        json(action)
    train.add_argument("--out", metavar="FOLDER", required=True, help="a new folder for the judge")
    train.add_argument("--encoder", metavar="MODEL", help="sentence encoder: folder or hub id (default: none)")
    train.add_argument("--threshold", type=float, help="least probability of a verdict; below, unscored")
    train.set_defaults(runs="judge:train")
    calibrate.add_argument("--out", metavar="FILE", help="keep the calibration, for `dcr-ray confirm --calibration`")
    calibrate.add_argument(
        "--leave-one-model-out",
        action="store_true",
        help="train a trained judge anew without the model it is held against",
    )
    calibrate.add_argument(
        "--train-file", metavar="FILE", action="append", default=[], help="what it is then trained on (default: --file)"
    )
    calibrate.set_defaults(runs="judge:calibrate")


def confirm(command: argparse.ArgumentParser) -> None:
    study(command)
    command.add_argument(
        "--calibration",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="what `dcr-ray judge calibrate --out` wrote, to correct the rates for the judge's errors; may be repeated",
    )
    command.add_argument("--top", type=int, default=2, metavar="K", help="how many finalists (default: 2)")
    command.add_argument("--seeds", type=int, default=3, metavar="S", help="fresh seeds for each of them (default: 3)")
    judges(command)
    command.add_argument("--address", help="Ray to run on (default: $RAY_ADDRESS, else one is started here)")
    command.add_argument(
        "--force",
        action="store_true",
        help="open a test split again, or before the search has ended; the report says so",
    )
    json(command)


def stop(command: argparse.ArgumentParser) -> None:
    study(command)
    head(command)


def sync(command: argparse.ArgumentParser) -> None:
    study(command)
    command.add_argument("--to", metavar="URI", help="tracking server (default: the study's own)")
    json(command)


def train(command: argparse.ArgumentParser) -> None:
    spec(command)
    command.add_argument("--stl", action="store_true", help="the baseline: safety SFT without the DCR stage")
    command.add_argument("--trial", metavar="NAME", help="the recipe of this trial of the study, by its name")
    command.add_argument("--out", metavar="FOLDER", help="also copy the finished model here")
    json(command)


def eval(command: argparse.ArgumentParser) -> None:
    spec(command)
    command.add_argument("--model", metavar="FOLDER", help="a finished model (default: the study's base model)")
    command.add_argument("--split", choices=("search", "test"), default="search", help="which part of the sets")
    command.add_argument("--force", action="store_true", help="open a test split that was opened before")
    json(command)


def diagnose(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder, hub id or built-in name")
    command.add_argument("--against", metavar="MODEL", help="another model, such as the base, on the same prompts")
    command.add_argument(
        "--spec", metavar="SPEC", help="study whose held-out prompts are read (default: built-in ones)"
    )
    command.add_argument(
        "--set", dest="overrides", metavar="A.B=C", action="append", default=[], help="override a value of the study"
    )
    command.add_argument("--prompts", type=int, default=25, metavar="N", help="of each class, for the kernel (25)")
    command.add_argument(
        "--layer-depth", type=float, default=0.5, metavar="L", help="l/L that parts trunk and tail (.5)"
    )
    command.add_argument(
        "--scopes",
        default="all,trunk,tail,last2+head,head",
        help="parameters whose kernel is wanted: head, trunk, tail, last<N>+head, lora, all (default: all but lora)",
    )
    command.add_argument("--error", type=float, default=0.1, help="wanted standard error of the mean log ratio (.1)")
    command.add_argument("--minutes", type=float, help="stop adding probes about then")
    command.add_argument("--only", choices=("kernel", "separability"), help="one of the two")
    command.add_argument("--streamed", action="store_true", help="one layer in memory at a time, for large models")
    command.add_argument("--out", metavar="FOLDER", help="where figures and pictures go")
    json(command)


def scale(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True)
    what = {
        "plan": "say what every rung will run and cost",
        "run": "run the ladder, or go on with it; then report",
        "fit": "fit the laws to the cells that there are",
        "forecast": "write forecasts of the targets, once",
        "backtest": "hold the largest sizes out, and forecasts against their results",
        "next": "rank the models and data sizes that might be run next by what they tell for their price",
        "report": "write the report: Markdown and a page with drawings",
    }
    for name, summary in what.items():
        action = actions.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        spec(action)
        json(action)
        if name == "plan":
            action.add_argument("--cluster", metavar="FILE", help="a described cluster instead of this machine")
        if name == "next":
            action.add_argument(
                "--cluster", metavar="FILE", required=True, help="the described cluster that has prices"
            )
            action.add_argument("--budget", type=float, metavar="MONEY", help="leave out what costs more")
            action.add_argument("--target", metavar="MODEL", help="forecast to narrow (default: the first target)")
            action.add_argument("--metric", help="default: the first one")
            action.add_argument("--arm", help="default: the first one")
        if name == "run":
            action.add_argument("--address", help="Ray to run on (default: $RAY_ADDRESS, else one is started here)")
        if name in ("run", "report"):
            action.add_argument("--out", metavar="FOLDER", help="where the report goes (default: reports/NAME)")
        action.set_defaults(runs="scale:next_cell" if name == "next" else f"scale:{name}")


def data(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("list", "fetch", "check", "ledger"))
    command.add_argument(
        "names",
        metavar="SET",
        nargs="*",
        help="data sets, or for ledger one study's YAML (default: all that are there)",
    )
    command.add_argument("--root", metavar="FOLDER", help="folder with the sets' original files")
    command.add_argument("--fold", type=int, default=0)
    command.add_argument("--folds", type=int, default=5)
    json(command)


def models(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("list", "fetch", "cut"))
    command.add_argument("names", metavar="MODEL", nargs="*", help="built-in names, hub ids or folders")
    command.add_argument("--layers", type=int, metavar="N", help="cut: keep the first N layers of MODEL")
    command.add_argument("--out", metavar="FOLDER", help="cut: where the truncated model goes")
    json(command)


def doctor(command: argparse.ArgumentParser) -> None:
    spec(command, optional=True)
    command.add_argument("--address", help="a Ray to look at with all its nodes: a head's URL, HOST:PORT, or auto")
    command.add_argument(
        "--storage",
        metavar="DIR",
        help="folder of studies, tried from every node (default: the spec's, then $DCR_RAY_STORAGE)",
    )
    command.add_argument("--tracking", metavar="URI", help="MLflow's address (default: the spec's)")
    json(command)


def engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    command.add_argument("--max-model-tokens", type=int, default=2048, help="longest prompt and answer together")
    command.add_argument("--limit", type=int, metavar="N", help="ask N questions, drawn at random by --seed")
    command.add_argument("--seed", type=int, default=0)
    json(command)


def capability(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder, built-in name or hub id")
    command.add_argument("--tasks", default="mmlu,arc_challenge,arc_easy,openbookqa,piqa", help="default: %(default)s")
    command.add_argument("--root", metavar="FOLDER", help="folder with the sets' original files (default: the hub)")
    command.add_argument("--mmlu-shots", type=int, default=5, help="examples in MMLU's prompts, 0 to 5 (default: 5)")
    engine(command)


def winrate(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="folder, built-in name, hub id, or .json file of outputs")
    command.add_argument("baseline", metavar="BASELINE", help="the same; the STL model, for a DCR model")
    command.add_argument("--judge-endpoint", metavar="URL", required=True, help="OpenAI-compatible, ends in /v1")
    command.add_argument("--judge-model", metavar="NAME", required=True, help="the endpoint's name of the judge")
    command.add_argument(
        "--judge-key-variable", metavar="NAME", default="OPENAI_API_KEY", help="holds the key; '' for none"
    )
    command.add_argument("--judge-max-tokens", type=int, default=32, help="longest answer of the judge")
    command.add_argument(
        "--instructions", metavar="FILE", help="JSON with a column 'instruction', such as AlpacaEval's"
    )
    command.add_argument("--max-tokens", type=int, default=512, help="longest answer of a model")
    command.add_argument("--system-prompt", metavar="TEXT", help="default: the chat template's own")
    command.add_argument("--out", metavar="FOLDER", help="keep outputs and the judge's answers; a second run asks less")
    engine(command)


def cluster(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(metavar="ACTION", required=True)
    listed = actions.add_parser("list", help="cluster files of a folder: kind, nodes, GPUs, price")
    listed.add_argument("folder", metavar="FOLDER", nargs="?", default="clusters")
    json(listed)
    listed.set_defaults(runs="cluster:list_files")

    validate = actions.add_parser("validate", help="hold files against what their launchers would say, offline")
    validate.add_argument("files", metavar="FILE", nargs="+")
    validate.add_argument(
        "--schemas",
        metavar="FOLDER",
        help="KubeRay's schemas (default: $DCR_RAY_KUBERAY_SCHEMAS, else where `cluster schemas` writes them)",
    )
    json(validate)
    validate.set_defaults(runs="cluster:validate")

    render = actions.add_parser("render", help="a file with other names, images and sizes; comments stay")
    render.add_argument("file", metavar="FILE")
    render.add_argument("--name", help="of the cluster, the job or the task")
    render.add_argument("--workers", type=int, metavar="N", help="nodes that do the work")
    render.add_argument("--image", help="container or machine image")
    render.add_argument("--region")
    render.add_argument("--spot", action="store_true", help="workers that may be taken away; the head stays on demand")
    render.add_argument("--storage", metavar="FOLDER", help="where the shared file system is mounted")
    render.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="any other field")
    render.add_argument("--out", metavar="FILE", help="default: standard output")
    render.set_defaults(runs="cluster:render")

    schemas = actions.add_parser("schemas", help="obtain KubeRay's schemas from its resource definitions")
    schemas.add_argument(
        "--from",
        dest="sources",
        metavar="SOURCE",
        action="append",
        default=[],
        help="a definition's file or URL (default: KubeRay's own, from GitHub)",
    )
    schemas.add_argument("--version", default="v1.5.0", help="KubeRay's version to fetch")
    schemas.add_argument("--out", metavar="FOLDER", help="default: $DCR_RAY_KUBERAY_SCHEMAS, else the cache")
    schemas.set_defaults(runs="cluster:schemas")
