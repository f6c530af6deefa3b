"""The monitor of drift: silent while texts are as before, loud when news become scripture."""

import itertools

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from labkit.errors import LabError
from labkit.evaluation import DriftMonitor
from labkit.models import KneserNey
from labkit.text import corpora


def counts(texts):
    """Letters counted: a language model that is trained in a second."""
    text = "\n".join(texts).encode()
    return KneserNey.fit(np.frombuffer(text, dtype=np.uint8), 256, order=5)


def bits_of(letters, texts):
    """Bits per byte of each text."""
    ids = (np.frombuffer(text.encode(), dtype=np.uint8) for text in texts)
    return np.array([-letters.log_probabilities(it).mean() / np.log(2) for it in ids])


@pytest.fixture(scope="module")
def read_before():
    train = corpora.load("bbc_news", "train")
    return train.select(np.random.default_rng(0).permutation(len(train))[:600])


@pytest.fixture(scope="module")
def texts(read_before):
    """News to learn from, held-out news and scripture, 500 characters of each held-out text."""
    held_out = corpora.load("bbc_news", "test")["text"]
    scripture = corpora.load("web_bible", "test")["text"]
    news, verses = (np.random.default_rng(0).permutation(len(it)) for it in (held_out, scripture))
    return (
        list(read_before["text"]),
        [held_out[i][:500] for i in news[:180]],
        [scripture[i][:500] for i in verses[:60]],
    )


@pytest.fixture(scope="module")
def seen(texts, read_before):
    """(bits per byte, topic) of held-out news and of scripture, by two models that read news."""
    news, *others = texts
    letters = counts(news)
    topics = make_pipeline(CountVectorizer(min_df=2), LogisticRegression(max_iter=300))
    topics.fit([text[:500] for text in news], read_before["label"])
    return tuple((bits_of(letters, it), topics.predict(it)) for it in others)


@pytest.fixture(scope="module")
def monitor(seen):
    (bits, labels), _ = seen
    return DriftMonitor(bits[:120], labels[:120], alpha=0.01)


def test_news_to_scripture_is_seen_in_both_signals(monitor, seen):
    _, (bits, labels) = seen
    verdict = monitor.check(bits[:20], labels[:20])
    assert verdict.drifted
    perplexity, shares = verdict.signals
    assert perplexity.change > 0.2
    assert perplexity.p == 1 / 1000, "no dealing is as far apart"
    assert shares.p <= 0.005
    assert sum(shares.window.values()) == pytest.approx(1)
    assert str(verdict).startswith("DRIFT: bits per byte +")


def test_retrained_on_what_was_collected_scripture_is_no_news_any_more(texts, monitor, seen):
    """The loop: 30 verses of the alarm are learned beside the news, 30 others are as before."""
    news, held_out, verses = texts
    _, (bits, labels) = seen
    assert monitor.check(bits[30:], labels[30:]).drifted
    collected, later = verses[:30], verses[30:]
    letters = counts([*news, *collected * 5])
    reference = [*held_out[:90], *verses[30:45]]
    retrained = DriftMonitor(bits_of(letters, reference))
    verdict = retrained.check(bits_of(letters, [*held_out[90:135], *verses[45:53]]))
    assert not verdict.drifted, verdict
    assert np.mean(bits_of(letters, later)) < bits[30:].mean() - 0.15, "cheaper than before"


def test_news_are_as_before(monitor, seen):
    (bits, labels), _ = seen
    verdicts = [monitor.check(bits[i : i + 20], labels[i : i + 20]) for i in (120, 140, 160)]
    assert not any(verdict.drifted for verdict in verdicts)


def test_a_stream_that_turns_is_judged_window_by_window(monitor, seen):
    """40 news, then scripture; the five texts left over are no window."""
    (bits, labels), (other_bits, other_labels) = seen
    news = zip(bits[120:160], labels[120:160], strict=True)
    verses = zip(other_bits[:25], other_labels[:25], strict=True)
    verdicts = list(monitor.watch(itertools.chain(news, verses), 20))
    assert [verdict.drifted for verdict in verdicts] == [False, False, True]


def test_a_few_strangers_among_many_are_missed_and_many_are_not(monitor, seen):
    """What a window of 20 can see: one verse in it goes unseen, ten do not."""
    (bits, labels), (other_bits, other_labels) = seen

    def window(verses):
        news = slice(120, 140 - verses)
        both = np.concatenate([bits[news], other_bits[:verses]])
        return monitor.check(both, np.concatenate([labels[news], other_labels[:verses]]))

    assert not window(1).drifted
    assert window(10).drifted


def test_more_of_one_subject_costs_no_bits_and_moves_the_shares(monitor, seen):
    (bits, labels), _ = seen
    new = np.arange(120, len(bits))
    one = new[labels[new] == np.bincount(labels[new]).argmax()][:12]
    verdict = monitor.check(bits[one], labels[one])
    perplexity, shares = verdict.signals
    assert verdict.drifted
    assert perplexity.p > 0.01 > shares.p


def documents(rng, count, tokens=200):
    """Bits of each token: a text has its own level, about which its tokens scatter."""
    return rng.normal(rng.normal(2.0, 0.3, (count, 1)), 1.0, (count, tokens))


def test_false_alarms_are_as_many_as_promised_and_of_tokens_far_more():
    """400 windows of nothing new: the naive test takes each token for a witness of its own."""
    rng, alarms, naive = np.random.default_rng(0), 0, 0
    for seed in range(400):
        reference, window = documents(rng, 60), documents(rng, 20)
        monitor = DriftMonitor(reference.mean(1), alpha=0.1, dealings=99, seed=seed)
        alarms += monitor.check(window.mean(1)).drifted
        apart = window.mean() - reference.mean()
        spread = np.sqrt(window.var() / window.size + reference.var() / reference.size)
        naive += abs(apart / spread) > 1.645
    assert 0.06 < alarms / 400 < 0.14
    assert naive / 400 > 0.5


def test_shares_alone_keep_their_promise_with_few_and_rare_labels():
    """Labels that come once or twice, where no formula for large numbers holds."""
    rng, alarms = np.random.default_rng(1), 0
    for seed in range(400):
        labels = rng.choice(list("abcde"), 50, p=[0.6, 0.3, 0.06, 0.02, 0.02])
        monitor = DriftMonitor(np.zeros(40), labels[:40], alpha=0.2, dealings=99, seed=seed)
        alarms += monitor.check(np.zeros(10), labels[40:]).drifted
    assert 0.03 < alarms / 400 < 0.14, "alpha is shared by two signals, and one of them is silent"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"bits_N": [1.0]}, "the reference has 1 texts: give at least 2"),
        ({"bits_N": [1.0, float("nan")]}, "not finite"),
        ({"labels_N": ["a"]}, "2 texts and 1 labels"),
        ({"alpha": 0}, "alpha 0 is out of range"),
        ({"alpha": 0.001}, "cannot reach alpha 0.001: choose at least 1999"),
        ({"dealings": 50}, "choose at least 199"),
    ],
)
def test_impossible_monitors_are_named(arguments, named):
    with pytest.raises(LabError, match=named):
        DriftMonitor(**{"bits_N": [1.0, 2.0], "labels_N": ["a", "b"], **arguments})


def test_impossible_windows_are_named():
    monitor = DriftMonitor([1.0, 2.0], ["a", "b"])
    with pytest.raises(LabError, match="on one side only"):
        monitor.check([1.0])
    with pytest.raises(LabError, match="window has 0 texts"):
        monitor.check([], [])
    with pytest.raises(LabError, match="window 0 is out of range"):
        list(monitor.watch([], 0))
