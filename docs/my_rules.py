"""A parametrization of one's own: muP whose embeddings learn faster the wider the model.

    python train.py --parametrization.rules=docs/my_rules.py --parametrization.mode=muP-embed

Works everywhere that muP does: training, studies, `nanoscale params`, `nanoscale coord-check`.
"""

from dataclasses import replace

from nanoscale.parametrization import MUP, Power, register

embedding = replace(MUP.rows["embedding"], lr=Power(m_N=0.5))  # or any function of the ratios
register("muP-embed", replace(MUP, rows=MUP.rows | {"embedding": embedding}))
