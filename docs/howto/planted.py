# planted.py
import numpy as np
import pandas as pd

C = np.repeat(np.geomspace(1e12, 1e16, 9), 2)
noise = np.random.default_rng(0).normal(scale=0.002, size=C.size)
loss = (1.5 + 60 / (C + 3e13) ** 0.12) * np.exp(noise)

runs = pd.DataFrame({"flops": C, "loss": loss, "seed": np.tile([1, 2], 9)})
runs.to_csv("planted.csv", index=False)
