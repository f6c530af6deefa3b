"""labkit finetune --task qa and seq2seq on files of one's own: learned, scored, opened, refused."""

import csv
import json
import random

import pytest
import torch
from commands import here, losses, write_rows

import labkit
from labkit.batches import source_ids
from labkit.models import EncoderDecoder, TransformerConfig
from labkit.models.huggingface import save_pretrained
from labkit.text import Tokenizer, train_bpe

PEOPLE = ("Amara", "Omar", "Mei", "Ravi", "Nia", "Luca")
PLACES = ("kitchen", "garden", "harbour", "barn", "attic", "tower")
OLD = {"you": "thou", "are": "art", "have": "hast", "will": "wilt"}
FAST = ["--precision", "fp32", "--batch-size", 8]


def asked(count=90):
    """Who is where, of two people in a context; every third question is about a third one."""
    rows = []
    for i in range(count):
        one, two, three = (PEOPLE[(i * k + k) % 6] for k in (1, 5, 0))
        one, two = PEOPLE[i % 6], PEOPLE[(i + 1 + i // 6 % 4) % 6]
        three = next(p for p in PEOPLE if p not in (one, two))
        here_, there = PLACES[i * 7 % 6], PLACES[(i * 5 + 3) % 6]
        context = f"{i}: {one} is in the {here_}. {two} is in the {there}."
        who = (one, two, three)[i % 3]
        answer = ("the " + here_, "the " + there, "")[i % 3]
        start = context.rfind(answer) if i % 3 == 1 else context.find(answer)
        rows.append(
            {
                "question": f"Where is {who}?",
                "context": context,
                "answer": answer,
                "answer_start": start if answer else "",
            }
        )
    return rows


def translated(count=160):
    words = ("you", "are", "have", "will", "he", "she", "good", "old", "king", "ships")
    chance, rows = random.Random(0), []
    for _ in range(count):
        new = chance.choices(words, k=3)
        rows.append({"source": " ".join(new), "target": " ".join(OLD.get(w, w) for w in new)})
    return list({row["source"]: row for row in rows}.values())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    write_rows(folder / "qa.jsonl", asked())
    write_rows(folder / "pairs.csv", translated())
    return folder


@pytest.fixture(scope="module")
def encoder(files):
    from transformers import BertConfig, BertModel

    folder = files / "encoder"
    texts = [row["question"] + " " + row["context"] for row in asked()]
    tokenizer = train_bpe(texts, 400)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=tokenizer.vocab_size, intermediate_size=64, **shape)
    BertModel(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(files):
    from labkit.models import Transformer

    folder = files / "decoder"
    tokenizer = train_bpe([f"{r['source']} {r['target']}" for r in translated()] * 3, 300)
    torch.manual_seed(0)
    shape = {"context_length": 64, "d_model": 32, "num_layers": 1, "num_heads": 2}
    config = TransformerConfig.llama(vocab_size=tokenizer.vocab_size, **shape)
    save_pretrained(Transformer(config), folder, tokenizer)
    return folder


@pytest.fixture(scope="module")
def bart(files, decoder):
    folder = files / "bart"
    tokenizer = Tokenizer.from_pretrained(decoder)
    torch.manual_seed(0)
    shape = {"context_length": 32, "d_model": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
    config = TransformerConfig.bart(
        vocab_size=tokenizer.vocab_size, initializer_range=0.18, **shape
    )
    save_pretrained(EncoderDecoder(config), folder, tokenizer)
    return folder


def evaluation(run):
    return json.loads((run / "evaluation.json").read_text())


# --- qa ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def read_run(files, encoder):
    out = files / "qa"
    data = ["--data", files / "qa.jsonl", "--model", encoder, "--out", out, "--task", "qa"]
    assert here("finetune", *data, *FAST, "--epochs", 5, "--learning-rate", 3e-3) == 0
    return out


def test_a_reader_is_learned_scored_and_beside_lazy_ones(read_run):
    found = evaluation(read_run)
    assert found["test"]["F1"]["low"] <= found["test"]["F1"]["estimate"]
    assert found["test"]["questions"] > 3
    lazy = found["baselines"]["always no answer"]
    assert lazy["F1 without"]["estimate"] == 100
    assert lazy["F1 with an answer"]["estimate"] == 0
    assert set(found["baselines"]) == {"always no answer", "sentence with most common words"}
    assert "pipeline_tag: question-answering" in (read_run / "model" / "README.md").read_text()
    with (read_run / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["F1"]) < 1 for row in rows)
    config = json.loads((read_run / "config.json").read_text())
    assert config["task"] == "qa"


def test_the_run_opens_in_transformers_and_by_name_with_its_threshold(read_run):
    from transformers import AutoModelForQuestionAnswering

    AutoModelForQuestionAnswering.from_pretrained(read_run / "model")
    reader = labkit.load_reader(read_run)
    assert reader.threshold == evaluation(read_run)["threshold"]
    context = asked()[0]["context"]
    assert reader.answer(asked()[0]["question"], context) in ("", *_pieces(context))
    settings = json.loads((read_run / "model" / "tokenizer_config.json").read_text())
    assert (settings["stride"], settings["model_max_length"]) == (reader.stride, reader.max_length)


def _pieces(text):
    return [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]


def test_evaluate_repeats_the_score_of_the_reader(read_run, files, capsys):
    from labkit.text.cleaning import split_by_hash

    rows = asked()
    held = split_by_hash([row["context"] for row in rows], seed=0)["test"]
    data = write_rows(files / "held.jsonl", [rows[i] for i in held])
    assert here("evaluate", read_run, "--data", data, "--json") == 0
    score = json.loads(capsys.readouterr().out)["scores"][str(data)]
    saved = evaluation(read_run)["test"]
    assert score["questions"] == saved["questions"]
    assert score["F1"]["estimate"] == pytest.approx(saved["F1"]["estimate"])
    assert here("evaluate", read_run, "--data", data) == 0
    assert "exact match" in capsys.readouterr().out


def test_the_columns_tell_the_task(files, encoder, decoder, tmp_path, capsys):
    few = ["--epochs", 0.1, *FAST]
    qa = ["--data", files / "qa.jsonl", "--model", encoder, "--out", tmp_path / "a"]
    assert here("finetune", *qa, *few) == 0
    assert "task    qa, spans of a context" in capsys.readouterr().out
    pairs = ["--data", files / "pairs.csv", "--model", decoder, "--out", tmp_path / "b"]
    assert here("finetune", *pairs, *few) == 0
    assert "task    seq2seq, source to target" in capsys.readouterr().out


def test_a_context_of_the_test_file_is_not_trained_on(files, encoder, tmp_path, capsys):
    rows = asked()
    test = write_rows(tmp_path / "test.jsonl", [{**rows[i], "question": "Who?"} for i in range(9)])
    arguments = ["--data", files / "qa.jsonl", "--test", test, "--model", encoder]
    assert here("finetune", *arguments, "--out", tmp_path / "a", "--epochs", 0.1, *FAST) == 0
    said = capsys.readouterr().err
    assert "examples stand in the test" in said
    assert "left out" in said


# --- seq2seq -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["decoder", "bart"])
def written_run(request, files):
    model, out = request.getfixturevalue(request.param), files / f"run-{request.param}"
    data = ["--data", files / "pairs.csv", "--model", model, "--out", out, "--task", "seq2seq"]
    assert here("finetune", *data, *FAST, "--epochs", 12, "--learning-rate", 1e-2) == 0
    return out


def test_a_writer_is_learned_and_scored(written_run):
    found = evaluation(written_run)
    assert found["test"]["loss"] < 0.5 * losses(written_run)[0]
    assert set(found["baselines"]) == {"the source, copied", "target of the nearest source"}
    assert found["test"]["signatures"]["BLEU"].startswith("nrefs:1|case:mixed|")
    assert found["test"]["answers"] > 3
    with (written_run / "answers.csv").open() as file:
        assert len(list(csv.DictReader(file))) == found["test"]["answers"]


def test_generate_answers_with_beams(written_run, capsys):
    source = translated()[3]["source"]
    arguments = ["generate", written_run, "--prompt", source, "--beams", 4]
    assert here(*arguments) == 0
    best = capsys.readouterr().out
    assert not best.startswith(f"{source}{source}"), "the source is not repeated before the answer"
    assert here(*arguments, "--samples", 2, "--length-penalty", 0) == 0
    assert capsys.readouterr().out.count("---") == 1
    opened = labkit.load(written_run)
    assert opened.generate(source, beams=4) == [best.removesuffix("\n")]
    assert opened.answer([source, "you are"], beams=4)[0] == best.removesuffix("\n")
    assert opened.answer([source]) == opened.generate(source, temperature=0)
    assert len(opened.generate(source, beams=4, samples=3)) == 3


def test_evaluate_repeats_the_score_of_the_writer(written_run, files, capsys):
    from labkit.text.cleaning import split_by_hash

    rows = translated()
    held = split_by_hash([row["source"] for row in rows], seed=0)["test"]
    data = write_rows(files / "held.csv", [rows[i] for i in held])
    arguments = ["evaluate", written_run, "--data", data, "--json", "--max-new-tokens", 30]
    assert here(*arguments) == 0
    score = json.loads(capsys.readouterr().out)["scores"][str(data)]
    saved = evaluation(written_run)["test"]
    assert score["answers"] == saved["answers"]
    assert score["chrF"]["estimate"] == pytest.approx(saved["chrF"]["estimate"], abs=8)
    assert here(*arguments[:-3], "--beams", 2) == 0
    assert "BLEU" in capsys.readouterr().out


def test_an_encoder_decoder_answers_in_transformers_as_here(files, bart):
    from transformers import AutoModelForSeq2SeqLM

    out = files / "run-bart"
    if not out.exists():
        data = ["--data", files / "pairs.csv", "--model", bart, "--out", out, "--task", "seq2seq"]
        assert here("finetune", *data, *FAST, "--epochs", 2, "--learning-rate", 5e-3) == 0
    opened, theirs = labkit.load(out), AutoModelForSeq2SeqLM.from_pretrained(out / "model")
    for row in translated()[:5]:
        ids = torch.tensor([source_ids(opened.tokenizer, row["source"])])
        options = {"num_beams": 3, "early_stopping": "never", "do_sample": False}
        said = theirs.generate(ids, max_new_tokens=12, **options)[0]
        text = opened.tokenizer.decode(said.tolist(), skip_special_tokens=True)
        assert text == opened.generate(row["source"], beams=3, max_new_tokens=12)[0]


# --- what cannot be learned --------------------------------------------------------------------

GOOD = {"question": "Where is Mei?", "context": "Mei is in the barn.", "answer": "the barn"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": "the garden"}, "row 3: the answer 'the garden' does not stand in its context"),
        ({"answer_start": "400"}, "row 3: answer_start is '400'; it counts characters of the"),
        ({"answer_start": "-2"}, "answer_start is '-2'"),
        ({"answer_start": "ten"}, "answer_start is 'ten'"),
        ({"answer_start": "4"}, "at answer_start 4 the context has 'is in th', not the answer"),
        ({"question": " "}, "row 3 has nothing in column 'question'"),
        ({"context": ""}, "row 3 has nothing in column 'context'"),
        ({"answer": None}, "row 3 has no column 'answer'; it has question, context"),
    ],
)
def test_a_question_that_cannot_be_used_is_one_sentence(change, words, encoder, tmp_path, capsys):
    rows = [dict(GOOD) for _ in range(20)]
    rows[2] |= change
    rows[2] = {key: value for key, value in rows[2].items() if value is not None}
    data = write_rows(tmp_path / "bad.jsonl", rows)
    out = tmp_path / "run"
    arguments = ["--data", data, "--task", "qa", "--model", encoder, "--out", out]
    assert here("finetune", *arguments) == 2
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert "Traceback" not in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"source": "a", "target": ""}] * 9, "row 1 has nothing in column 'target'"),
        ([{"source": "", "target": "a"}] * 9, "row 1 has nothing in column 'source'"),
        ([{"source": "a", "goal": "b"}] * 9, "no column 'target'; it has source, goal"),
        ([{"source": "a", "target": "b"}] * 9, "has 9 examples, which leaves none for"),
    ],
)
def test_a_pair_that_cannot_be_used_is_one_sentence(rows, words, decoder, tmp_path, capsys):
    data, out = write_rows(tmp_path / "bad.jsonl", rows), tmp_path / "run"
    arguments = ["--data", data, "--task", "seq2seq", "--model", decoder, "--out", out]
    assert here("finetune", *arguments) == 2
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert not out.exists()


def test_other_things_that_do_not_fit_are_one_sentence(files, encoder, decoder, tmp_path, capsys):
    def refused(words, *arguments):
        assert here(*arguments) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert words in said
        assert not (tmp_path / "run").exists()

    out = ["--out", tmp_path / "run"]
    none = [{**row, "answer": "", "answer_start": ""} for row in asked(40)]
    data = write_rows(tmp_path / "none.jsonl", none)
    refused("no question of", "finetune", "--task", "qa", "--data", data, "--model", encoder, *out)
    qa = ["finetune", "--task", "qa", "--data", files / "qa.jsonl", *out]
    refused(
        "answers fits whole into a window of max_length 8",
        *qa,
        "--model",
        encoder,
        "--max-length",
        8,
    )
    refused("storyworld has no rows of task qa", *qa[:3], "--data", "storyworld", *out)
    pairs = ["finetune", "--task", "seq2seq", "--data", files / "pairs.csv", *out]
    refused("does not predict the next token", *pairs, "--model", encoder)
    refused("no target of the", *pairs, "--model", decoder, "--max-length", 2)


def test_options_of_the_search_that_do_not_fit(decoder, capsys):
    for arguments, words in (
        (["--beams", 0], "beams 0 is out of range: choose 1 to 100"),
        (["--beams", 3, "--samples", 4], "samples 4 is out of range: choose 1 to 3 (beams)"),
        (["--beams", 3, "--top-k", 4], "top_k 4 is out of range: choose none with beams"),
        (["--beams", 3, "--chat"], "beams 3 is out of range: choose 1 to talk"),
        (["--length-penalty", "nan"], "length_penalty nan is out of range"),
        (["--beams", 2, "--prompt", "you " * 90], "do not fit into the model's context of 64"),
    ):
        assert here("generate", decoder, *arguments) == 2
        assert words in " ".join(capsys.readouterr().err.split())
