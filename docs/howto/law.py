# law.py
from nanoscale import register_law
from nanoscale.laws import Law, Parameter

# Below about C0 FLOPs compute buys little; far above it this is the usual power law.
register_law(
    Law(
        name="late-power",
        predictors=("C",),
        parameters=(
            Parameter("E", "floor"),
            Parameter("K", "coefficient"),
            Parameter("g", "exponent"),
            Parameter("C0", "scale", grid=(1e11, 1e12, 1e13, 1e14, 1e15)),
        ),
        formula="{E} + {K} / (C + {C0})^{g}",
        function=lambda E, K, g, C0, C: E + K / (C + C0) ** g,
    )
)
