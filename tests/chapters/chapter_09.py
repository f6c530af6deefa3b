"""What chapter 09 must measure, in a small run and in the committed one."""

#: Metrics of a `smoke` run with seed 0: name -> (expected, tolerance).
EXPECTED: dict[str, tuple[float, float]] = {
    "posterior_excess_nats": (1.0, 0.3863),
    "storyworld_floor": (0.222, 0.01),
    "mean: 5-gram": (2.947, 0.1),
    "mean: generalist, 4 units": (3.66, 0.3),
    "soup: uniform guess": (4.077, 0.1),
    "router gradient, divided": (0.0, 1e-12),
}

#: What the text claims of the committed `cpu` run: name -> (lowest, highest).
CLAIMS: dict[str, tuple[float, float]] = {
    "expert_away_over_home": (1.6, 3.0),
    "expert_gain_over_generalist_1_unit": (0.03, 0.5),
    "domains_where_the_generalist_wins_at_home": (3, 3),
    "generalist_4_units_minus_experts": (-0.12, -0.03),
    "storyworld_floor": (0.215, 0.23),
    "gentle_gain": (0.08, 0.17),
    "gentle_lost": (0.05, 0.12),
    "strong_gain": (0.2, 0.3),
    "strong_lost": (0.55, 0.9),
    "soup: gentle branches": (2.1, 2.18),
    "soup: strong branches": (2.185, 2.3),
    "soup: the ancestor itself": (2.17, 2.2),
    "soup: experts, same first weights": (3.0, 3.6),
    "soup: two generalists": (2.5, 3.0),
    "barrier": (0.6, 1.1),
    "posterior_excess_nats": (0.0, 1.3863),
    "router_accuracy": (0.88, 0.96),
    "router_cheat_gap": (0.1, 0.2),
    "mean: generalist, 4 units": (1.84, 1.9),
    "mean: branches, posterior": (1.92, 1.97),
    "mean: branches, told the domain": (1.92, 1.96),
    "mean: branches, hard router": (1.96, 2.03),
    "mean: branches, equal weights": (2.12, 2.23),
    "mean: 5-gram": (1.7, 1.77),
    "mean: with 5-gram": (1.6, 1.72),
    "posterior_behind_generalist_low": (2.0, 6.0),
    "router gradient, divided": (0.0, 1e-12),
    "redraw_seconds": (0.0, 0.2),
}
