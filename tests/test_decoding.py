"""A token step is the model's own forward pass, for every shape, padded or not."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from labkit.errors import LabError
from labkit.generation import TokenStep, generate, left_pad
from labkit.generation.token_step import is_plain
from labkit.models import Transformer, TransformerConfig

TINY = {"vocab_size": 53, "context_length": 24, "d_model": 32, "num_layers": 2, "num_heads": 4}
LLAMA = TransformerConfig.llama(**TINY)
GPT2 = TransformerConfig.gpt2(**TINY)
SHAPES = {
    "llama": LLAMA,
    "llama_grouped": dataclasses.replace(LLAMA, num_kv_heads=2),
    "llama_untied": dataclasses.replace(LLAMA, tied_embeddings=False),
    "gpt2": GPT2,
    "gpt2_sinusoidal": dataclasses.replace(GPT2, position="sinusoidal"),
    "post_norm": dataclasses.replace(GPT2, norm_position="post", activation="relu"),
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3]]


def model_of(shape):
    torch.manual_seed(0)
    model = Transformer(SHAPES[shape])
    with torch.no_grad():
        for p in model.parameters():  # biases and norms, too, away from their first values
            p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_the_forward_pass(shape, copy):
    model = model_of(shape)
    step = TokenStep(model, copy)
    ids, mask = left_pad(PROMPTS)
    for padding in (mask, None):
        ours, theirs = model.new_cache(2), model.new_cache(2)
        seen = padding
        with torch.no_grad():
            for cache in (ours, theirs):
                model(ids, attention_mask=padding, cache=cache)
            for new in torch.tensor([[7, 8], [9, 10], [50, 52]]):
                if seen is not None:
                    seen = torch.cat((seen, torch.ones(2, 1, dtype=torch.long)), 1)
                expected = model(new[:, None], attention_mask=seen, cache=theirs).logits[:, -1]
                assert_close(step(new, ours, seen), expected, rtol=1e-5, atol=1e-5)
        assert ours.length == theirs.length == ids.shape[1] + 3


def test_it_keeps_the_weights_that_it_was_built_from_only_where_it_copies():
    model = model_of("llama")
    copied, looked = TokenStep(model), TokenStep(model, copy=False)
    ids = torch.tensor([[1, 2, 3]])

    def logits(step):
        cache = model.new_cache(1)
        with torch.no_grad():
            model(ids, cache=cache)
        return step(torch.tensor([4]), cache)

    before = logits(copied)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    assert not torch.equal(logits(looked), before)
    assert copied.decoder.head.w.is_contiguous()
    assert not looked.decoder.head.w.is_contiguous()
    same = TokenStep(model.bfloat16()).decoder.head.w
    assert same.data_ptr() == model.lm_head.weight.data_ptr()


def test_a_long_text_is_that_of_the_plain_loop():
    model = model_of("llama")
    ids = [PROMPTS[1][:]]
    with torch.no_grad():
        for _ in range(20):
            ids[0].append(int(model(torch.tensor(ids)).logits[0, -1].argmax()))
    assert generate(model, PROMPTS[1], 20, temperature=0) == ids[0][3:]
    assert all(p.requires_grad for p in model.parameters())


COMPILED = """
import dataclasses, sys, torch
from labkit.generation import generate
from labkit.models import Transformer, TransformerConfig

torch.manual_seed(0)
tiny = dict(vocab_size=53, context_length=24, d_model=32, num_layers=2, num_heads=4)
config = {
    "llama": dataclasses.replace(TransformerConfig.llama(**tiny), num_kv_heads=2),
    "gpt2": TransformerConfig.gpt2(**tiny),
}[sys.argv[1]]
model = Transformer(config)
with torch.no_grad():
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.2)

def compare(prompts, new):
    eager, compiled = (
        generate(model, prompts, new, temperature=0, compile=compile) for compile in (False, True)
    )
    assert compiled == eager, (compiled, eager)
    return eager

compare([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3]], 6)
with torch.compiler.set_stance("fail_on_recompile"):
    compare([[1, 2, 3, 4, 5, 6, 7, 8, 9], [5, 4]], 8)  # another length, other padding
    before = compare([[1, 2], [3, 4]], 12)  # no padding
    with torch.no_grad():
        model.blocks[0].ffn.down.weight.neg_()
    assert compare([[1, 2], [3, 4]], 12) != before
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_compiled_step_writes_the_same_and_is_compiled_once(shape):
    # In its own process: the tests' shape checks would break the graph.
    command = [sys.executable, "-c", COMPILED, shape]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Adapted(torch.nn.Linear):
    """Stands for an adapter: the base weight and something more."""

    def forward(self, x):
        return super().forward(x) + 0.5 * x


def test_a_replaced_layer_is_not_passed_over():
    model = model_of("llama")
    assert is_plain(model)
    base = generate(model, PROMPTS[0], 10, temperature=0)
    old = model.blocks[1].attention.out
    model.blocks[1].attention.out = Adapted(*old.weight.shape, bias=False)
    model.blocks[1].attention.out.load_state_dict(old.state_dict())
    adapted = generate(model, PROMPTS[0], 10, temperature=0)
    assert adapted == generate(model, PROMPTS[0], 10, temperature=0, use_cache=False)
    assert adapted != base
    with pytest.raises(LabError, match="call the model itself"):
        TokenStep(model)
    with pytest.raises(LabError, match="call the model itself"):
        generate(model, PROMPTS[0], 10, compile=True)


class Louder(torch.nn.Module):
    """Stands for a norm, an embedding or a head that somebody put in place of ours."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, x):
        return self.inner(x) * 1.5


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ("llama", "blocks.0.ffn_norm"),
        ("llama_untied", "embedding"),
        ("llama", "final_norm"),
        ("llama", "lm_head"),
        ("gpt2", "positions"),
        ("post_norm", "embedding_norm"),
        ("post_norm", "blocks.1.attention_norm"),
    ],
)
def test_no_part_that_was_replaced_is_passed_over(shape, part):
    model = model_of(shape)
    model.set_submodule(part, Louder(model.get_submodule(part)))
    assert not is_plain(model)
    written = generate(model, PROMPTS[0], 10, temperature=0)
    assert written == generate(model, PROMPTS[0], 10, temperature=0, use_cache=False)


def test_a_hook_hears_every_token():
    model = model_of("llama")
    heard = []
    handle = model.blocks[0].ffn.register_forward_hook(lambda m, x, y: heard.append(y.shape[1]))
    generate(model, PROMPTS[0], 5, temperature=0)
    assert heard == [7, 1, 1, 1, 1]
    handle.remove()
    assert is_plain(model)
