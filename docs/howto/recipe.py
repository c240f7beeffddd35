# recipe.py
import nanoscale as ns
from nanoscale.studies.recipe import Answer, Picture, Question, Recipe

SEEDS = ("init_seed", "data_seed")


def rows(table):
    """The runs, as keys of their configs: one of the two seeds moves at a time."""
    tried = table.values.get("seeds", [1, 2, 3])
    if len(tried) < 2:
        raise ns.UserError(f"{table.where()}: seeds={tried}: give two or more")
    runs = []
    for key in SEEDS:
        for seed in tried:
            runs.append({"init_seed": 0, "data_seed": 0, key: seed})
    return Question(runs, table.where())


def conclude(study, frame):
    """What a user reads, and the numbers behind it, from a row per run."""
    done = frame[frame["state"] == "COMPLETE"]
    spread = {}
    for key in SEEDS:
        losses = done.loc[done[key] != 0, "val_loss"].astype(float)
        spread[key] = float(losses.std())
    lines = [f"sd of the loss over {key}: {sd:.4f} nats" for key, sd in spread.items()]
    return Answer(lines, result=spread, numbers=spread)


def figures(study, frame, answer):
    """Pictures for the page; of an empty list it has those of a grid."""
    moved = frame.assign(seed=frame["init_seed"] + frame["data_seed"])
    figure = ns.lines_figure(moved, x="seed", y={"val_loss": "validation loss"})
    return [Picture("noise", "The loss of every seed, of either kind.", figure)]


ns.register_recipe("noise", Recipe(("seeds",), rows, conclude, figures))
