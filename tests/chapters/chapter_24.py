"""What chapter 24 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "rules, precision": (0.97, 1.0),
    "rules, recall": (0.75, 0.88),
    "rules, shuffled dropped": (0.0, 0.05),
    "exact, recall": (0.5, 0.5),
    "near, recall": (0.98, 1.0),
    "near, precision": (0.9, 1.0),
    "leaks, recall": (0.7, 0.82),
    "leaks, precision": (0.88, 1.0),
    "leaks by hash": (0.33, 0.34),
    "leaks by runs of 3, precision": (0.05, 0.3),
    "perplexity, shuffled dropped": (0.3, 0.7),
    "classifier, shuffled dropped": (0.0, 0.3),
    "loops among the easiest": (0.5, 1.0),
    "copies dropped by a classifier that read them": (0.4, 1.0),
    "network gain, all": (0.12, 0.165),
    "network gain, random": (-0.03, 0.03),
    "network gain, rules alone": (0.08, 0.14),
    "network gain, perplexity alone": (0.08, 0.14),
    "network gain, classifier alone": (0.08, 0.15),
    "network gain, near alone": (-0.09, -0.03),
    "network gain, leaks alone": (-0.08, -0.01),
    "network gain, the labels": (0.14, 0.18),
    "near in addition, network": (0.04, 0.09),
    "leaks in addition, network": (-0.03, 0.01),
    "rules in addition, network": (-0.03, 0.03),
    "perplexity in addition, network": (-0.03, 0.03),
    "classifier in addition, network": (-0.03, 0.03),
    "5-gram gain, near alone": (0.02, 0.12),
    "flattered, network, no filter": (0.08, 0.16),
    "flattered, 5-gram, no filter": (1.0, 1.5),
    "flattered, network, all": (0.0, 0.08),
    "flattered, 5-gram, all": (0.25, 0.7),
    "live gain, all": (0.08, 0.2),
    "ranks agree": (0.8, 1.0),
    "redraw_seconds": (0.0, 0.2),
}
