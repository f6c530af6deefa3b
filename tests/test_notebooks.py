"""Every chapter: runs end to end under `smoke`, and is in order as committed."""

import os
import re
import subprocess
import sys
from collections import Counter

import nbformat
import pytest

import labkit
from labkit import course

#: Metrics that a chapter must report under `smoke` with seed 0: name -> (expected, tolerance). What
#: follows from mathematics has a tolerance of rounding; what is learned in a few steps, a wide one.
EXPECTED: dict[str, dict[str, tuple[float, float]]] = {
    "00": {
        "floor": (0.504, 0.02),
        "validation_loss": (6.02, 0.3),
    },
    "01": {
        "chain_rule_error": (0.0, 1e-9),
        "small_world_texts": (168, 0),
        "small_world_entropy_bits": (6.6827, 1e-3),
        "kneser_ney_mass": (1.0, 1e-5),
        "undiscounted_mass": (1.036, 0.03),
        "storyworld_floor": (0.228, 0.02),
    },
    "02": {
        "merges_identical_to_the_crate": (1, 0),
        "chinese_tokens_per_character": (2.965, 0.05),
        "share_of_split_words_that_longest_match_gets_wrong": (0.22, 0.15),
    },
    "03": {
        "future leak of M = -10": (0.2964591, 1e-3),
        "variance at K = 64, scaled": (0.986, 0.02),
        "MiniLM mean entropy": (2.66, 0.1),
        "untrained mean entropy": (4.33, 0.1),
    },
    "04": {
        "count errors": (0, 0),
        "largest logit difference": (0.0, 2e-5),
        "MiniLM difference": (0.0, 2e-5),
        "cosine same topic": (0.459, 0.01),
        "cosine other topic": (0.078, 0.01),
        "second ReLU stream mean": (0.65, 0.3),
        "head: previous token": (0.99, 0.02),
    },
    "05": {
        "coin_entropy_nats": (0.6108643, 1e-6),
        "test_accuracy": (0.9, 0.1),
        "naive_bayes_accuracy": (0.94, 0.04),
        "true_class_only_accuracy": (0.4, 0.3),
        "mean_of_means_gradient_error": (0.08, 0.05),
        "chunk_memory_ratio": (1.4, 0.4),
    },
    "06": {
        "by_hand_error": (0.0, 1e-6),
        "loop_difference": (0.0, 1e-3),
        "bias_correction_error": (0.0, 0.01),
        "mean_of_means_error": (0.38, 0.15),
        "adamw": (2.9, 0.3),
        "l2_under_adam": (3.2, 0.3),
    },
    "07": {
        "masked recipe, largest deviation": (0.0, 4.5),
        "span density": (0.15, 0.03),
        "mean span length": (3.0, 0.5),
        "labkit spans crossing": (0.0, 0.0),
        "naive spans crossing": (0.166, 0.08),
        "targets per token causal": (1.0, 0.0),
        "targets per token masked": (0.4, 0.01),
        "targets per token spans": (0.173, 0.02),
        "targets per token contrastive": (1 / 64, 1e-9),
        "bag of words, next sentence, 30 tokens": (0.586, 0.08),
        "bag of words, next sentence, 120 tokens": (0.742, 0.1),
    },
    "08": {
        "resumed_tensors_equal": (56, 0),
    },
    "09": {
        "posterior_excess_nats": (1.0, 0.3863),
        "storyworld_floor": (0.222, 0.01),
        "mean: 5-gram": (2.947, 0.1),
        "mean: generalist, 4 units": (3.66, 0.3),
        "soup: uniform guess": (4.077, 0.1),
        "updates": (100, 0),
    },
    "10": {
        "memory_error": (0.0, 0.15),
        "test_accuracy_bag_of_words": (0.9, 0.1),
        "test_accuracy_frozen": (0.9, 0.1),
    },
    "17": {
        "largest_prediction_error": (0.0, 0.1),
        "largest_part_error": (0.0, 0.1),
        "simulation_error": (0.0, 1e-3),
        "gpt2_prediction_error": (0.0, 0.1),
        "bf16_scaler_equal": (1, 0),
        "fp16_scaled_behind": (0.0, 0.01),
        "bf16_behind": (0.0, 0.02),
        "fp16_small_mean_behind": (0.0, 0.02),
        "torchtune_ratio": (1.0, 0.15),
        "eight_bit_gap": (0.0, 0.02),
    },
}

#: What the text of a chapter claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, dict[str, tuple[float, float]]] = {
    "00": {"exact_answers": (0.62, 1.0), "naming": (0.0, 0.55), "without_the_story": (0.0, 0.2)},
    "01": {
        "fit_seconds": (0.0, 30.0),
        "fit_peak_mb": (0.0, 1000.0),
        "discount_of_1": (0.35, 0.5),
        "discount_of_9": (1.7, 2.6),
        "continuation_gain": (0.01, 0.5),
        "web_bible_5-gram": (1.2, 1.45),
        "beyond_5gram_low_Transformer": (0.05, 0.4),
        "beyond_5gram_low_LSTM": (0.05, 0.4),
        "beyond_5gram_low_feed-forward": (0.05, 0.4),
        "beyond_5gram_high_5-gram + Transformer": (-0.5, -0.005),
        "beyond_5gram_high_5-gram + LSTM": (-0.5, -0.005),
        "beyond_5gram_high_5-gram + feed-forward": (-0.5, -0.002),
        "window_start_Transformer": (0.3, 0.6),
        "window_end_Transformer": (0.05, 0.2),
        "known_1_Transformer_minus_5gram": (-0.2, 0.05),
        "known_4_Transformer_minus_5gram": (0.15, 0.5),
        "storyworld_Transformer": (0.23, 0.32),
        "storyworld_LSTM": (0.32, 0.39),
        "storyworld_feed-forward": (0.39, 0.43),
        "storyworld_5-gram": (0.39, 0.43),
        "perplexity_of_best_bits": (2.0, 100.0),
        "padding_against_floor": (0.0, 0.98),
        "unknown_perplexity_ratio": (10.0, 1e6),
        "leak_1_percent": (0.0, 0.03),
        "leak_10_percent": (0.05, 0.2),
        "window_gain": (0.02, 0.5),
        "live_curve_overhead": (0.0, 0.055),
    },
    "02": {
        "exact_duplicates": (103, 103),
        "near_duplicates": (60, 70),
        "merges_identical_to_the_crate": (1, 1),
        "seconds_from_scratch": (0.0, 20.0),
        "share_of_split_words_that_longest_match_gets_wrong": (0.28, 0.45),
        "greedy_to_rank_tokens": (0.99, 1.0),
        "streamed_memory_growth": (0.9, 1.3),
        "token_premium_of_chinese": (2.8, 3.1),
        "unknown_chinese_percent": (55, 65),
        "code_premium": (1.8, 2.2),
        "likelihood_pieces_per_word_ratio": (1.8, 2.0),
        "best_vocabulary": (8192, 8192),
        "bytes_worse_by": (0.4, 0.6),
        "largest_vocabulary_worse_by": (0.05, 0.1),
        "seed_spread": (0.0, 0.007),
        "original_bits_per_byte": (1.7, 1.82),
        "lower_cased_on_its_own": (1.68, 1.75),
        "lower_cased_on_original": (2.4, 2.8),
        "stripped_on_original": (4.4, 5.0),
        "stripped_per_original_byte": (0.95, 1.08),
        "unigram_gain": (0.78, 0.82),
        "widget_redraw_seconds": (0.0, 0.2),
    },
    "03": {"MiniLM mean entropy": (2.9, 3.1)},
    "04": {
        "largest logit difference": (0.0, 2e-5),
        "count errors": (0, 0),
        "gradient ratio pre-norm": (2.5, 5.0),
        "gradient ratio post-norm": (0.8, 1.3),
        "stream growth": (6.0, 10.0),
        "stream growth undivided": (30.0, 50.0),
        "second ReLU harm, layernorm": (0.05, 0.25),
        "second ReLU harm, rmsnorm": (0.05, 0.25),
        "second ReLU stream mean": (1.0, 4.0),
        "neighbour accuracy": (0.87, 0.97),
        "head: same word": (0.12, 0.2),
        "reversal: decoder only": (0.98, 1.0),
        "reversal: encoder-decoder": (0.98, 1.0),
        "ablation: rotary positions": (-0.35, -0.15),
        "ablation: all of Llama's": (-0.35, -0.12),
        "ablation: sinusoidal positions": (0.5, 1.6),
        "ablation: sinusoidal, waves / √D": (-0.15, 0.1),
        "ablation: RMSNorm": (-0.03, 0.03),
        "ablation: SwiGLU": (0.0, 0.15),
        "ablation: ReLU": (0.04, 0.2),
        "ablation: post-norm": (-0.08, 0.03),
        "ablation: untied embeddings": (-0.3, -0.05),
    },
    "05": {"test_accuracy": (0.9, 1.0)},
    "06": {
        "by_hand_error": (0.0, 1e-6),
        "piled_up_loss": (3.5, 7.0),
        "range_test_rate": (0.007, 0.03),
        "sgd": (2.5, 2.9),
        "momentum": (2.6, 3.0),
        "adamw": (1.9, 2.2),
        "muon": (1.7, 1.95),
        "adamw_equal_time": (1.9, 2.15),
        "muon_update_time_ratio": (1.0, 1.6),
        "l2_under_adam": (2.4, 2.9),
        "decay_on_everything_difference": (-0.04, 0.04),
        "warmup_gain_low_rate": (-0.08, -0.005),
        "warmup_gain_high_rate": (0.1, 0.4),
        "cosine_against_constant": (-0.05, 0.0),
        "cosine_against_linear": (-0.005, 0.04),
        "clipping_adamw_bad_batch": (-0.3, -0.05),
        "mean_of_means_error": (0.1, 0.6),
        "knee_batch": (4.0, 12.0),
        "noise_scale_half_way": (6.0, 20.0),
        "test_loss_overfit": (2.35, 2.9),
        "test_loss_early_stopping": (2.2, 2.45),
        "test_loss_dropout": (2.1, 2.3),
        "widget_redraw_seconds": (0.0, 0.2),
        "live_curve_overhead": (0.0, 0.055),
    },
    "07": {
        "masked recipe, largest deviation": (0.0, 4.5),
        "labkit spans crossing": (0.0, 0.0),
        "naive spans crossing": (0.1, 0.2),
        "span density": (0.145, 0.155),
        "mean span length": (2.8, 3.2),
        "targets per token masked": (0.395, 0.405),
        "targets per token spans": (0.16, 0.18),
        "bag of words, next sentence, 30 tokens": (0.55, 0.68),
        "bag of words, next sentence, 240 tokens": (0.9, 1.0),
        "topic none": (0.35, 0.55),
        "topic contrastive": (0.52, 0.65),
        "topic masked + next": (0.25, 0.4),
        "topic bag of words": (0.65, 0.8),
        "neighbour causal": (0.04, 0.065),
        "neighbour contrastive": (0.016, 0.025),
        "neighbour bag of words": (0.3, 0.5),
        "t, topic accuracy, causal against none": (-4.3, 4.3),
        "t, topic accuracy, masked against none": (-4.3, 4.3),
        "t, topic accuracy, masked + next against none": (-4.3, 4.3),
        "t, topic accuracy, spans against none": (-4.3, 4.3),
        "t, topic accuracy, contrastive against none": (4.3, 1e9),
        "t, neighbour found, causal against none": (4.3, 1e9),
        "t, neighbour found, contrastive against none": (-4.3, 4.3),
        "t, fill, bits/byte, masked against causal": (-1e9, -4.3),
        "t, fill, bits/byte, spans against causal": (-1e9, -4.3),
        "fill masked": (3.2, 3.37),
        "continue masked": (3.37, 3.45),
        "next sentence accuracy": (0.45, 0.55),
        "next sentence changes topic accuracy": (-0.25, -0.05),
        "next sentence changes fill, bits/byte": (0.0, 0.4),
        "training loss, copying": (0.0, 1.5),
        "hidden tokens, copying": (5.9, 6.2),
        "hidden tokens, BERT's recipe": (5.9, 6.1),
        "training loss, BERT's recipe": (5.3, 5.8),
        "hidden tokens, BERT's recipe, told where to look": (4.5, 4.75),
        "hidden tokens, 40 %, always [M]": (5.5, 5.9),
        "visible tokens, BERT's recipe": (0.5, 3.0),
        "visible tokens, 40 %, always [M]": (6.1, 7.0),
        "widget_redraw_seconds": (0.0, 0.2),
        "live_curve_overhead": (0.0, 0.055),
    },
    "08": {
        "bits_per_byte_web_bible": (1.2, 1.6),
        "bits_per_byte_bbc_news": (1.6, 2.1),
        "bits_per_byte_python_source": (1.4, 1.85),
        "saved_against_5gram_python_source": (0.03, 1.0),
        "storyworld_bits_per_byte": (0.2195, 0.29),
        "live_curve_overhead": (0.0, 0.055),
        "resumed_tensors_equal": (56, 56),
    },
    "09": {
        "expert_away_over_home": (1.6, 3.0),
        "expert_gain_over_generalist_1_unit": (0.03, 0.5),
        "domains_where_the_generalist_wins_at_home": (3, 3),
        "generalist_4_units_minus_experts": (-0.12, -0.03),
        "perplexity_ratio_of_vocabularies": (20.0, 40.0),
        "bits_ratio_of_vocabularies": (0.96, 1.04),
        "law_error_lopsided": (0.0, 0.04),
        "law_error_by_size": (0.1, 0.3),
        "gain_of_best_mixture": (-0.02, 0.02),
        "by_size_harm": (0.2, 0.4),
        "gentle_gain": (0.08, 0.17),
        "gentle_lost": (0.05, 0.12),
        "strong_gain": (0.2, 0.3),
        "strong_lost": (0.55, 0.9),
        "replay_10_keeps_of_gain": (0.85, 1.0),
        "replay_10_of_forgetting": (0.1, 0.25),
        "replay_30_mean_minus_ancestor": (-0.1, -0.01),
        "soup: gentle branches of one ancestor": (2.1, 2.18),
        "soup: strong branches of one ancestor": (2.185, 2.3),
        "soup: the ancestor itself": (2.17, 2.2),
        "soup: experts with the same first weights": (3.0, 3.6),
        "soup: unrelated experts": (3.0, 3.6),
        "soup: two generalists of 4 units": (2.5, 3.0),
        "barrier": (0.6, 1.1),
        "posterior_excess_nats": (0.0, 1.3863),
        "router_cheat_gap": (0.1, 0.2),
        "mean: generalist, 4 units": (1.84, 1.9),
        "mean: branches, posterior": (1.92, 1.97),
        "mean: told the domain: branches": (1.92, 1.96),
        "mean: branches, hard router": (1.96, 2.03),
        "mean: branches, equal weights": (2.12, 2.23),
        "posterior_behind_generalist_low": (2.0, 6.0),
        "mean: with 5-gram": (1.6, 1.72),
        "live_curve_overhead": (0.0, 0.055),
        "redraw_seconds": (0.0, 0.2),
    },
    "10": {
        "test_accuracy": (0.97, 1.0),
        "test_macro_f1": (0.97, 1.0),
        "memory_error": (0.0, 0.15),
        "live_curve_overhead": (0.0, 0.055),
    },
    "17": {
        "largest_prediction_error": (0.0, 0.1),
        "largest_part_error": (0.0, 0.03),
        "simulation_error": (0.0, 1e-3),
        "simulated_gap_gpu_profile": (0.0, 0.1),
        "gpt2_prediction_error": (0.0, 0.02),
        "gpt2_process_over_predicted": (1.0, 1.5),
        "gpt2_saving": (1.5, 1.9),
        "underflow_share_unscaled": (0.4, 0.7),
        "underflow_share_2_16": (0.0, 0.01),
        "fp16_unscaled_behind": (0.3, 1.5),
        "fp16_scaled_behind": (-0.01, 0.01),
        "bf16_behind": (-0.01, 0.01),
        "fp16_small_mean_behind": (-0.01, 0.01),
        "bf16_scaler_equal": (1, 1),
        "bf16_nearest_unmoved": (0.6, 0.72),
        "bf16_nearest_progress": (-0.1, 0.1),
        "bf16_stochastic_progress": (0.9, 1.1),
        "bf16_kahan_progress": (0.9, 1.1),
        "accumulation_away": (0.0, 0.05),
        "eight_bit_gap": (-0.005, 0.005),
        "torchtune_ratio": (0.85, 1.15),
        "skipped_updates": (1, 10),
        "widget_redraw_seconds": (0.0, 0.2),
        "live_curve_overhead": (0.0, 0.055),
    },
}

LARGEST_MB = 1.5
WIDGET = "application/vnd.jupyter.widget-view+json"
LONGEST_CELL = 40

CHAPTERS = course.chapters()
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda it: it.name)


def cells(chapter, kind="code"):
    notebook = nbformat.read(chapter.path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tags(cell):
    return cell.metadata.get("tags", [])


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.slow
@every_chapter
def test_runs_headlessly_and_reports_what_it_should(chapter, tmp_path):
    results = course.run(
        [chapter.name], profile="smoke", out=tmp_path, folder=chapter.path.parent, progress=False
    )
    metrics = results[chapter.name]["metrics"]
    assert metrics, f"{chapter.name} reports no metrics: its last cell calls report({{...}})"
    for name, (expected, tolerance) in EXPECTED.get(chapter.number, {}).items():
        assert metrics.get(name) == pytest.approx(expected, abs=tolerance), name


@pytest.mark.slow
@every_chapter
def test_every_cell_passes_under_nbval(chapter):
    """No cell raises; the output of cells tagged nbval-check-output is as committed."""
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider"),
            *("--override-ini=addopts=", str(chapter.path)),
        ],
        env={**os.environ, "LABKIT_PROFILE": "smoke"},
        cwd=chapter.path.parent,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]


# --- as committed ------------------------------------------------------------------------------


@every_chapter
def test_is_small(chapter):
    assert chapter.path.stat().st_size <= LARGEST_MB * 1e6


@every_chapter
def test_has_the_cells_that_tools_rely_on(chapter):
    counts = Counter(tag for cell in cells(chapter) for tag in tags(cell))
    assert (counts["parameters"], counts["colab"], counts["imports"]) == (1, 1, 1)
    (parameters,) = [cell for cell in cells(chapter) if "parameters" in tags(cell)]
    assert parameters.source.split() == ["profile", "=", '"auto"', "seed", "=", "0"]


@every_chapter
def test_outputs_come_from_one_clean_run(chapter):
    code = cells(chapter)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    # A widget shows itself; as the value of a cell it would stand there twice.
    twice = [o for o in outputs if o.output_type == "execute_result" and WIDGET in o.data]
    assert not [o.data["text/plain"] for o in twice]
    assert course.metrics_of(chapter.path)["profile"] == "cpu"
    assert course.metrics_of(chapter.path)["chapter"] == chapter.number


@every_chapter
def test_the_committed_run_shows_what_the_text_claims(chapter):
    metrics = course.metrics_of(chapter.path)["metrics"]
    for name, (lowest, highest) in CLAIMS[chapter.number].items():
        assert lowest <= metrics[name] <= highest, name


@every_chapter
def test_every_cell_fits_a_screen(chapter):
    long = [cell.source for cell in cells(chapter) if cell.source.count("\n") >= LONGEST_CELL]
    assert not long, f"a cell of more than {LONGEST_CELL} lines:\n{long[0]}"


@every_chapter
def test_does_not_reach_around_the_package(chapter):
    for cell in cells(chapter):
        for forbidden in ("sys.path", "filterwarnings", "!pip", "import *"):
            assert forbidden not in cell.source


@every_chapter
def test_widgets_carry_a_picture_and_their_state(chapter):
    notebook = nbformat.read(chapter.path, as_version=4)
    state = notebook.metadata.get("widgets", {}).get(
        "application/vnd.jupyter.widget-state+json", {}
    )
    models = state.get("state", {})
    for cell in cells(chapter):
        if not re.search(r"\b(explore|explore_text|chat)\(", cell.source):
            continue
        for output in cell.outputs:
            view = output.get("data", {}).get(WIDGET)
            if view:
                assert view["model_id"] in models
                assert {"image/png", "text/html"} & set(output.data)
                break
        else:
            pytest.fail(f"no widget in the output of:\n{cell.source}")


def test_badges_install_cells_and_readme_agree_with_the_repository():
    stale = course.stamp(write=False)
    assert not stale, f"run `python -m labkit.course stamp`: {[path.name for path in stale]}"
    for chapter in CHAPTERS:
        text = "\n".join(cell.source for cell in [*cells(chapter), *cells(chapter, "markdown")])
        assert course.colab_badge(chapter) in text, chapter.name
        assert f"git+{labkit.REPOSITORY}" in text, chapter.name
