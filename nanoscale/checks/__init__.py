"""VERDICTS: arithmetic on records, and what it says in words. No folder of runs is read here.

The learning rate over sizes: `lr_transfer` judges it (`optimum` finds one size's best, `drift` how
it moves, `lr_reasons` the words, `lr_verdict` the record). Two arms: `paired` by seed,
`compute_multiplier`, and the record in `comparison`. Activations over width and depth:
`coordinates`, what is allowed in `coordinate_bands`, what is at fault in `coordinate_faults`, the
record in `coordinate_verdict`.
"""
