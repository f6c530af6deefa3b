"""From documents to batches, and the data order as a pure function of (seed, step).

    documents -> tokens on disk -> Windows      -> Batches -> micro-batches -> objective
                 (`tokens`)        packed items    (`order`: who, and with which randomness)
                                   padded texts      │
                                   pairs             └ corrupt(example, random): masks, spans,
                                   (`examples`,        next sentence (`corruption`, `pairs`)
                                    `pairs`)

A run never stores where it is in the data: `Batches.indices(step)` computes it. So a resumed run
continues with the very examples that the uninterrupted one would have seen, and any number of
ranks or micro-batches splits the same global batch. What is random about an example, such as which
tokens are masked, is a function of its place in the endless stream, too.

Targets are shifted here, once: `labels[t]` is the target of the prediction made at position t.

Legend: B examples, T positions.

Sources: Brown et al. 2020, arXiv:2005.14165 (windows over a token stream); Krell et al. 2021,
arXiv:2107.02027 (packing without cross-contamination); Devlin et al. 2019, arXiv:1810.04805
(masking, next sentence); Raffel et al. 2020, arXiv:1910.10683 (span corruption).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
