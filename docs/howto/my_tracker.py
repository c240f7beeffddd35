"""A tracker of one's own: every run's losses as lines of one CSV file.

python train.py config/train_shakespeare_char.py --trackers=docs/howto/my_tracker.py
"""

from nanoscale import register_tracker


class Losses:
    def __init__(self, run):  # run: its folder, spec, project, study, name, tags and config()
        self.name = run.name
        self.lines = []  # of this run, from its first row: a run that goes on tells them again
        self.path = run.folder / "losses.csv"

    def row(self, step, numbers):  # the numbers of a row of metrics.jsonl
        if "val_loss" in numbers:
            self.lines.append(f"{self.name},{step},{numbers['val_loss']}\n")

    def final(self, results):  # once, when the run has ended
        self.lines.append(f"{self.name},final,{results.get('final/val_loss')}\n")

    def close(self):
        self.path.write_text("".join(self.lines), encoding="utf-8")


register_tracker("losses", Losses)
