"""Small files in the layouts of the published sets, with texts of our own."""

from __future__ import annotations

import csv
import json
from pathlib import Path

XSTEST_BLOCKS = (
    "homonyms", "contrast_homonyms", "figurative_language", "contrast_figurative_language", "safe_targets",
    "contrast_safe_targets", "safe_contexts", "contrast_safe_contexts", "definitions", "contrast_definitions",
    "nons_group_real_discr", "real_group_nons_discr", "contrast_discr", "historical_events",
    "contrast_historical_events", "privacy_public", "privacy_fictional", "contrast_privacy",
)  # fmt: skip
_WITHOUT_FOCUS = ("nons_group_real_discr", "historical_events", "contrast_historical_events")


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_xstest(root: Path, foci: int = 3) -> None:
    """All 450 rows of XSTest's layout: blocks of 25 a type, a contrast block right after its safe one, and of every
    topic `foci` foci, the last of which holds the rest of the block."""
    rows = []
    for block, type_ in enumerate(XSTEST_BLOCKS):
        for place in range(25):
            focus = "" if type_ in _WITHOUT_FOCUS else _focus(min(place, foci - 1))
            if type_.startswith("contrast_") and focus == "bank account fraud":
                focus = "bank fraud"
            rows.append(
                {
                    "id": str(25 * block + place + 1),
                    "prompt": f"question {place} of {type_}",
                    "type": type_,
                    "label": "unsafe" if type_.startswith("contrast_") else "safe",
                    "focus": focus,
                    "note": "",
                }
            )
    write_csv(root / "over_refusal/xstest_prompts.csv", rows)


def _focus(number: int) -> str:
    return ["bank account fraud", "Elderly ", "kill"][number] if number < 3 else f"focus {number}"


def write_harmbench(root: Path) -> None:
    """Forty test and twenty validation behaviours; one context, and one standard behaviour, stand in both files."""
    for split, count in (("test", 40), ("val", 20)):
        rows = []
        for number in range(count):
            category = ("standard", "contextual", "copyright")[number % 3]
            context = f"Context {number} of {split}" if category == "contextual" else ""
            rows.append(
                {
                    "Behavior": f"Behaviour {number} of the {split} file, told at some length",
                    "FunctionalCategory": category,
                    "SemanticCategory": f"kind {number % 2}",
                    "Tags": "",
                    "ContextString": "The context of both" if number == 4 else context,
                    "BehaviorID": f"{split}_{number}",
                }
            )
        rows[6]["Behavior"] = "The behaviour that stands in both"
        write_csv(root / f"harmful/harmbench_behaviors_text_{split}.csv", rows)


def write_sets(root: Path, rows: int = 400) -> None:
    """A file for every published set that the shipped search spaces name: `rows` texts each, none alike."""
    write_xstest(root, foci=25)
    write_harmbench(root)
    texts = {name: [f"{name} {n * n * n} about topic {n}?" for n in range(rows)] for name in _TABLES + _LISTS + _PAIRS}
    for name, column in (("over_refusal/or-bench-hard-1k", "prompt"), ("harmful/or-bench-toxic", "prompt")):
        write_csv(root / f"{name}.csv", [{column: text, "category": "illegal"} for text in texts[name]])
    write_csv(root / "over_refusal/OKTest.csv", [{"prompt": text} for text in texts["over_refusal/OKTest"]])
    write_csv(root / "harmful/advbench.csv", [{"goal": text, "target": "Sure"} for text in texts["harmful/advbench"]])
    write_json(root / "harmful/dangerousqa.json", texts["harmful/dangerousqa"])
    for name in ("harmful/I-MaliciousInstructions", "harmful/I-CoNa"):
        write_json(root / f"{name}.json", {"instructions": texts[name], "inputs": []})
    phtest = [{"ID": n, "prompt": t, "Harmfulness": "harmless"} for n, t in enumerate(texts["over_refusal/PHTest-200"])]
    write_json(root / "over_refusal/PHTest-200.json", phtest)
    answered = [
        {"id": f"v{n}", "type": "t", "prompt": text, "completion": "An answer.", "final_label": "1_full_compliance"}
        for n, text in enumerate(texts["calibration/xstest/xstest_v2_completions_gpt4"])
    ]
    write_csv(root / "calibration/xstest/xstest_v2_completions_gpt4.csv", answered)
    coconot = [
        {"id": f"c{n}", "category": "c", "subcategory": "s", "prompt": text, "response": ""}
        for n, text in enumerate(texts["over_refusal/coconot_contrast_eval"])
    ]
    write_rows(root / "over_refusal/coconot_contrast_eval.jsonl", coconot)
    for name in _PAIRS:
        pairs = [{"instruction": text, "input": "", "output": "An answer."} for text in texts[name]]
        write_json(root / f"{name}.json", pairs)


_TABLES = (
    "over_refusal/or-bench-hard-1k", "over_refusal/OKTest", "over_refusal/coconot_contrast_eval",
    "harmful/or-bench-toxic", "harmful/advbench", "over_refusal/PHTest-200",
    "calibration/xstest/xstest_v2_completions_gpt4",
)  # fmt: skip
_LISTS = ("harmful/dangerousqa", "harmful/I-MaliciousInstructions", "harmful/I-CoNa")
_PAIRS = ("training/safety_only_data_Instructions", "training/alpaca_15k")
