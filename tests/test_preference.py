"""Conversations and preferences: what counts, what a file may hold, DPO by hand."""

import json
import math

import pytest
import torch
from commands import here
from torch.testing import assert_close

from labkit.batches import (
    IGNORE_INDEX,
    Batches,
    Pad,
    PadPreferences,
    conversation_example,
    preference_example,
)
from labkit.errors import LabError
from labkit.evaluation import preferred, with_reference
from labkit.models import Transformer, TransformerConfig
from labkit.objectives import DPO, answer_log_probabilities, causal_lm
from labkit.text import conversations, train_bpe
from labkit.text.conversations import Preference
from labkit.training import TrainConfig, train

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the key?"},
    {"role": "assistant", "content": "In the box."},
    {"role": "user", "content": "And the hat?"},
    {"role": "assistant", "content": "On a hook."},
]
WORDS = "in on the a box hook key hat where is and be brief far away here there no yes"


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([WORDS, "Where is the key? In the box. And the hat? On a hook."], 290)


def answers(role_texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(role_texts)]


def pair(question, chosen, rejected):
    said = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return Preference(answers([question]), *said)


PAIRS = [
    pair("Where is the key?", "In the box.", "No."),
    pair("And the hat?", "On a hook.", "far away and there and here in the box"),
    pair("Where is the hat?", "yes", "no"),
    pair("key", "here", "there there there"),
    pair("Is the key here?", "Yes, the key is in the box here.", "no no"),
]


def model_of(tokenizer, seed=0):
    torch.manual_seed(seed)
    shape = {"context_length": 64, "d_model": 32, "num_layers": 2, "num_heads": 2, "dropout": 0.0}
    return Transformer(TransformerConfig(vocab_size=tokenizer.vocab_size, **shape))


# --- conversations -----------------------------------------------------------------------------


def counted(tokenizer, example):
    """The texts that count, each as a piece."""
    pieces, ids = [], []
    for label in [*example["labels"].tolist(), IGNORE_INDEX]:
        if label != IGNORE_INDEX:
            ids.append(label)
        elif ids:
            pieces.append(tokenizer.decode(ids[:-1]))
            assert ids[-1] == tokenizer.end_of_turn_id, "an answer counts with its end"
            ids = []
    return pieces


def test_every_answer_counts_with_its_end_and_nothing_else(tokenizer):
    example = conversation_example(tokenizer, TURNS)
    assert counted(tokenizer, example) == ["In the box.", "On a hook."]
    ids = tokenizer.apply_chat_template(TURNS, add_generation_prompt=False)
    assert example["input_ids"].tolist() == ids[:-1]
    where = example["labels"] != IGNORE_INDEX
    assert example["labels"][where].tolist() == torch.tensor(ids)[1:][where].tolist()


def test_the_answers_of_the_real_chat_model_count_with_their_end():
    from labkit.text import Tokenizer, corpora

    tokenizer = Tokenizer.from_pretrained(corpora.smollm2_folder())
    example = conversation_example(tokenizer, TURNS)
    assert counted(tokenizer, example) == ["In the box.", "On a hook."]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    import copy

    other = copy.copy(tokenizer)
    other.__dict__ = dict(tokenizer.__dict__)
    template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    )
    object.__setattr__(other, "chat_template", template)
    with pytest.raises(LabError, match="otherwise than alone"):
        conversation_example(other, TURNS)


def test_a_conversation_without_an_answer_teaches_nothing(tokenizer):
    with pytest.raises(LabError, match="the assistant says nothing"):
        conversation_example(tokenizer, TURNS[:2])


FORMS = [
    {"messages": answers(["Hi", "Hello"])},
    {"prompt": "Hi", "completion": "Hello"},
    {"prompt": answers(["Hi"]), "completion": answers(["Hi", "Hello"])[1:]},
]


@pytest.mark.parametrize("row", FORMS)
def test_the_forms_of_a_conversation(row):
    assert conversations.conversation(row) == answers(["Hi", "Hello"])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"},
        {
            "prompt": answers(["Hi"]),
            "chosen": answers(["Hi", "Hello"])[1:],
            "rejected": answers(["Hi", "What?"])[1:],
        },
        {"chosen": answers(["Hi", "Hello"]), "rejected": answers(["Hi", "What?"])},
    ],
)
def test_the_forms_of_a_preference(row):
    assert conversations.preference(row) == pair("Hi", "Hello", "What?")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "Hi"}, "has columns text: a conversation has messages, or prompt and completion"),
        ({"messages": []}, "is []: give a text, or a list of messages"),
        ({"messages": answers(["Hi"])}, "goes user: after one system message at most"),
        ({"messages": answers(["Hi", " "])}, "an empty turn of the assistant"),
        ({"messages": [*TURNS[:1], *TURNS[2:3]]}, "goes system, assistant"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a message has a role"),
        ({"prompt": "Hi", "completion": 3}, "is 3: give a text"),
        ({"prompt": "Hi", "completion": ""}, "an empty turn of the assistant"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(row, said, tmp_path):
    file = tmp_path / "rows.jsonl"
    good = {"messages": answers(["Hi", "Hello"])}
    file.write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(LabError) as caught:
        conversations.read_conversations(file)
    assert "row 2 of" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Hi", "chosen": "Hello"}, "a preference has chosen and rejected"),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"}, "are equal"),
        ({"chosen": "Hello", "rejected": "What?"}, "no prompt: give one"),
        ({"chosen": answers(["a", "b"]), "rejected": answers(["c", "b"])}, "turn of the user"),
        ({"chosen": answers(["a", "b"]), "rejected": answers(["a"])}, "is not there"),
    ],
)
def test_a_row_that_is_no_preference_is_named(row, said, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(LabError) as caught:
        conversations.read_preferences(file)
    assert "row 1 of" in str(caught.value)
    assert said in str(caught.value)


# --- DPO ---------------------------------------------------------------------------------------


def ready(tokenizer, model, pairs=PAIRS):
    examples = [preference_example(tokenizer, it) for it in pairs]
    return with_reference(model, examples, tokenizer.pad_id, "fp32")


def by_hand(tokenizer, model, it, whole=False):
    """ln p(answer, end | prompt) token by token, without a batch; whole: of the prompt, too."""
    sums = []
    for answer in (it.chosen, it.rejected):
        ids = tokenizer.apply_chat_template([*it.prompt, *answer], add_generation_prompt=False)
        first = 1 if whole else len(tokenizer.apply_chat_template(it.prompt))
        logs_TV = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        sums.append(sum(logs_TV[t - 1, ids[t]] for t in range(first, len(ids))))
    return torch.stack(sums)


def test_log_probabilities_are_those_of_the_answers_alone_in_any_batch(tokenizer):
    model = model_of(tokenizer)
    batch = PadPreferences(tokenizer.pad_id)([preference_example(tokenizer, it) for it in PAIRS])
    assert batch["input_ids"].shape[:2] == (len(PAIRS), 2)
    found_P2 = answer_log_probabilities(model, batch)
    truth_P2 = torch.stack([by_hand(tokenizer, model, it) for it in PAIRS])
    assert_close(found_P2, truth_P2, atol=1e-5, rtol=1e-5)
    whole_P2 = torch.stack([by_hand(tokenizer, model, it, whole=True) for it in PAIRS])
    assert not torch.allclose(found_P2, whole_P2, atol=1.0), "the prompt does not count"


def test_of_a_prompt_with_answers_nothing_counts(tokenizer):
    long = Preference(TURNS[:4], *([{"role": "assistant", "content": t}] for t in ("yes", "no")))
    example = preference_example(tokenizer, long)
    assert counted(tokenizer, {"labels": example["chosen_labels"]}) == ["yes"]
    assert counted(tokenizer, {"labels": example["rejected_labels"]}) == ["no"]


def test_transformers_models_are_read_alike(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=tokenizer.vocab_size, **shape)).eval()
    batch = PadPreferences(tokenizer.pad_id)([preference_example(tokenizer, it) for it in PAIRS])
    truth_P2 = torch.stack([by_hand(tokenizer, theirs, it) for it in PAIRS])
    assert_close(answer_log_probabilities(theirs, batch), truth_P2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_the_paper(tokenizer, smoothing):
    start, model = model_of(tokenizer, 0), model_of(tokenizer, 1)
    examples = ready(tokenizer, start)
    batch = PadPreferences(tokenizer.pad_id)(examples)
    objective = DPO(0.3, smoothing)
    loss, count = objective(model, batch)
    loss.backward()
    mine = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total, weighted = torch.zeros(()), torch.zeros(())
    for it in PAIRS:
        logs, before = by_hand(tokenizer, model, it), by_hand(tokenizer, start, it).detach()
        margin = 0.3 * ((logs[0] - before[0]) - (logs[1] - before[1]))
        w = torch.sigmoid(-margin).detach()
        total = total - (1 - smoothing) * torch.log(torch.sigmoid(margin))
        total = total - smoothing * torch.log(1 - torch.sigmoid(margin))
        # The gradient as the paper writes it: a weight, and two gradients of log-probabilities.
        weighted = weighted - 0.3 * (w - smoothing) * (logs[0] - logs[1])
    assert int(count) == len(PAIRS)
    assert_close(loss, total, atol=1e-5, rtol=1e-5)
    weighted.backward()
    for name, p in model.named_parameters():
        assert_close(mine[name], p.grad, atol=1e-5, rtol=1e-4)


def test_at_the_start_nothing_is_preferred(tokenizer):
    model = model_of(tokenizer)
    examples = ready(tokenizer, model)
    loss, count = DPO(0.1)(model, PadPreferences(tokenizer.pad_id)(examples))
    assert_close(loss / count, torch.tensor(math.log(2)), atol=1e-6, rtol=0)
    it = preferred(model, Batches(examples, 2, PadPreferences(tokenizer.pad_id)), "fp32")
    assert it.accuracy().estimate == 0.5
    assert it.gain("chosen").estimate == it.gain("rejected").estimate == 0


def test_accumulation_and_padding_do_not_change_the_update(tokenizer):
    after = []
    for micro in (None, 1, 2):
        model = model_of(tokenizer)
        data = Batches(ready(tokenizer, model), 5, PadPreferences(tokenizer.pad_id))
        config = TrainConfig(
            steps=3, learning_rate=3e-3, precision="fp32", device="cpu", micro_batch_size=micro
        )
        losses = []
        train(model, DPO(0.5), data, config, on_step=lambda r: losses.append(r.loss))  # noqa: B023
        after.append((losses, [p.detach().clone() for p in model.parameters()]))
    for losses, weights in after[1:]:
        assert losses == pytest.approx(after[0][0], abs=1e-5)
        for mine, theirs in zip(weights, after[0][1], strict=True):
            assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    assert after[0][0][0] == pytest.approx(math.log(2), abs=1e-5)


def test_training_learns_to_tell_and_says_what_became_of_both(tokenizer):
    model = model_of(tokenizer)
    examples = ready(tokenizer, model)
    data = Batches(examples, 5, PadPreferences(tokenizer.pad_id))
    config = TrainConfig(steps=30, learning_rate=3e-3, precision="fp32", device="cpu")
    train(model, DPO(0.5), data, config)
    it = preferred(model, data, "fp32")
    assert it.accuracy().estimate == 1
    now = torch.stack([by_hand(tokenizer, model, p) for p in PAIRS]).detach()
    assert_close(it.now_P2, now, atol=1e-4, rtol=1e-4)
    gain = it.gain("chosen").estimate - it.gain("rejected").estimate
    change_P2 = it.now_P2 - it.before_P2
    assert gain == pytest.approx(float((change_P2[:, 0] - change_P2[:, 1]).mean()), abs=1e-4)


def test_what_cannot_be_optimised_is_said(tokenizer):
    batch = PadPreferences(tokenizer.pad_id)([preference_example(tokenizer, PAIRS[0])])
    with pytest.raises(LabError, match="have no reference"):
        DPO()(model_of(tokenizer), batch)
    for wrong in (0, -1.0, math.nan):
        with pytest.raises(LabError, match=r"beta .* is out of range"):
            DPO(wrong)
    with pytest.raises(LabError, match=r"smoothing 0\.5 is out of range"):
        DPO(0.1, 0.5)


# --- the stop token ----------------------------------------------------------------------------


def test_without_its_end_in_the_loss_a_model_never_learns_to_stop(tokenizer):
    """The gate of the mask: an answer that is learned by heart ends only if its end counted."""
    lesson = answers(["Where is the key?", "In the box."])
    whole = conversation_example(tokenizer, lesson)
    endless = {**whole, "labels": whole["labels"].clone()}
    endless["labels"][whole["labels"] == tokenizer.end_of_turn_id] = IGNORE_INDEX
    p_end = {}
    for name, example in {"counted": whole, "left out": endless}.items():
        model = model_of(tokenizer)
        data = Batches([example], 1, Pad(tokenizer.pad_id))
        config = TrainConfig(
            steps=80, learning_rate=1e-2, warmup_steps=5, precision="fp32", device="cpu"
        )
        train(model, causal_lm, data, config)
        last = int((whole["labels"] == tokenizer.end_of_turn_id).nonzero()[-1])
        logits_V = model(whole["input_ids"][None]).logits[0, last]
        p_end[name] = logits_V.softmax(-1)[tokenizer.end_of_turn_id].item()
    assert p_end["counted"] > 0.9
    assert p_end["left out"] < 0.1


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tokenizer, tmp_path_factory):
    """A model folder that commands open."""
    from labkit.models.huggingface import save_pretrained

    folder = tmp_path_factory.mktemp("small")
    save_pretrained(model_of(tokenizer), folder, tokenizer)
    return folder


def test_finetune_on_conversations_says_what_it_was_before(small, tmp_path, capsys):
    file, out = tmp_path / "chats.jsonl", tmp_path / "out"
    rows = [{"messages": answers([f"Where is key {n}?", "In the box.", "yes?", f"no {n % 3}"])}
            for n in range(60)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    settings = ("--epochs", 8, "--batch-size", 8, "--learning-rate", 1e-2, "--precision", "fp32")
    assert here("finetune", "--data", file, "--model", small, "--out", out, *settings) == 0
    said = capsys.readouterr().out
    assert "task    chat, the turns of the assistant" in said
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["test"]["loss"] < 0.3 * evaluation["baselines"]["as it came"]["loss"]
    ask = ("--chat", "--prompt", "Where is key 71?", "--temperature", 0, "--max-new-tokens", 12)
    assert here("generate", out, *ask) == 0
    assert capsys.readouterr().out.strip() == "In the box."


def test_finetune_on_preferences_says_who_gained(small, tmp_path, capsys):
    file, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    rows = [{"prompt": f"Where is key {n}?", "chosen": "In the box.", "rejected": f"no {n}"}
            for n in range(60)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    settings = ("--epochs", 3, "--batch-size", 8, "--learning-rate", 1e-3, "--precision", "fp32")
    data = ("--data", file, "--model", small, "--out", out)
    assert here("finetune", *data, *settings) == 0
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["baselines"]["as it came"]["gained more"]["estimate"] == 0.5
    assert evaluation["test"]["gained more"]["estimate"] == 1.0
    assert evaluation["test"]["chosen"]["estimate"] > evaluation["test"]["rejected"]["estimate"]
    assert "chosen gained more" in capsys.readouterr().out


def test_evaluate_says_which_answer_is_likelier(small, tokenizer, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Where is key {n}?", "chosen": "In the box, there.", "rejected": f"no {n}"}
            for n in range(9)]  # fmt: skip
    rows.append({"prompt": "Where?", "chosen": "no", "rejected": "In the box."})
    file.write_text("\n".join(map(json.dumps, rows)))
    assert here("evaluate", small, "--data", file, "--json") == 0
    found = json.loads(capsys.readouterr().out)["scores"][str(file)]
    model, likelier, a_token = model_of(tokenizer), [], []
    for it in map(conversations.preference, rows):
        sums = by_hand(tokenizer, model, it).tolist()
        answers_ = (it.chosen[0]["content"], it.rejected[0]["content"])
        lengths = [len(tokenizer.encode(answer)) + 1 for answer in answers_]  # and the end
        likelier.append(sums[0] > sums[1])
        a_token.append(sums[0] / lengths[0] > sums[1] / lengths[1])
    assert likelier != a_token, "the two would not be told apart"
    assert found["likelier"]["estimate"] == pytest.approx(sum(likelier) / len(rows))
    assert found["likelier a token"]["estimate"] == pytest.approx(sum(a_token) / len(rows))
    assert found["shorter"]["estimate"] == pytest.approx(0.1)
    assert found["pairs"] == 10
    for options, said in (
        (("--context-length", 4), "no row of"),
        (("--context-length", 10**6), "choose at most 64"),
        (("--split", "test"), "choose none: all of such a file is read"),
    ):
        assert here("evaluate", small, "--data", file, *options) == 2
        assert said in capsys.readouterr().err
    assert here("evaluate", small, "--data", file) == 0
    assert "chosen is shorter" in capsys.readouterr().out


def test_evaluate_reads_the_answers_of_conversations(small, tokenizer, tmp_path, capsys):
    file = tmp_path / "chats.jsonl"
    rows = [{"messages": answers(["Where?", "In the box."])}, {"prompt": "Hi", "completion": "no"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert here("evaluate", small, "--data", file, "--json") == 0
    found = json.loads(capsys.readouterr().out)["scores"][str(file)]
    examples = [conversation_example(tokenizer, conversations.conversation(row)) for row in rows]
    sums = [causal_lm(model_of(tokenizer), {k: v[None] for k, v in e.items()}) for e in examples]
    total, count = (sum(float(it) for it in side) for side in zip(*sums, strict=True))
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["tokens"] == count
    assert here("evaluate", small, "--data", file, "bbc_news") == 2
    assert "of one kind" in capsys.readouterr().err
    texts = [{"text": "The key is in the box.", **row} for row in rows]
    file.write_text("\n".join(map(json.dumps, texts)))
    assert here("evaluate", small, "--data", file, "--json") == 0
    assert "bits_per_byte" in json.loads(capsys.readouterr().out)["scores"][str(file)]


def test_beta_reaches_the_loss(small, tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Where is key {n}?", "chosen": "In it.", "rejected": f"no {n}"}
            for n in range(60)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    settings = ("--epochs", 1, "--batch-size", 16, "--learning-rate", 1e-3, "--precision", "fp32")
    losses = []
    for beta in (0.1, 1.0):
        out = tmp_path / f"out{beta}"
        data = ("--data", file, "--model", small, "--out", out, "--beta", beta)
        assert here("finetune", *data, *settings) == 0
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["loss"] for record in records if "loss" in record])
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)  # ln 2, whatever beta is
    assert losses[1][-1] < losses[0][-1] - 0.01


def test_completions_with_a_label_are_not_taken_for_good_answers(small, tmp_path, capfd):
    file = tmp_path / "judged.jsonl"
    rows = [{"prompt": f"key {n}?", "completion": "no", "label": n % 2} for n in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    data = ("--data", file, "--model", small, "--out", tmp_path / "out")
    assert here("finetune", *data) == 2
    assert "has no column 'text'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--beta", 0], "beta 0.0 is out of range: choose a number above 0"),
        (["--max-length", 4], "none of the"),
        (["--strategy", "prompt"], "strategy prompt leaves no plain model"),
        (["--task", "chat"], "a conversation has messages, or prompt and completion"),
    ],
)
def test_what_a_run_on_preferences_cannot_take_is_said(options, said, small, tmp_path, capfd):
    file, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    rows = [{"prompt": f"Where is key {n}?", "chosen": "In it.", "rejected": f"no {n}"}
            for n in range(40)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    data = ("--data", file, "--model", small, "--out", out)
    assert here("finetune", *data, *options) == 2
    assert said in capfd.readouterr().err
    assert not (out / "model").exists()
