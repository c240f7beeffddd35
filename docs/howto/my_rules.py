r"""A parametrization of one's own: muP whose embeddings learn faster the wider the model.

    python train.py --parametrization.rules=docs/howto/my_rules.py --parametrization.mode=muP-embed

Works everywhere that muP does: training, studies, `nanoscale params`. What it does is measured by

    nanoscale coord-check --parametrization.rules=docs/howto/my_rules.py \
        --parametrization.mode=muP-embed --widths 64,128,256

which fails it: "update of embedding grows as width^+0.50: the LR rule of embedding".
"""

from dataclasses import replace

from nanoscale.spec.parametrization import MUP, Power, register

embedding = replace(MUP.rows["embedding"], lr=Power(m_N=0.5))  # or any function of the ratios
register("muP-embed", replace(MUP, rows=MUP.rows | {"embedding": embedding}))
