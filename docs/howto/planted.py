# planted.py
import numpy as np

C = np.repeat(np.geomspace(1e12, 1e16, 9), 2)
noise = np.random.default_rng(0).normal(scale=0.002, size=C.size)
loss = (1.5 + 60 / (C + 3e13) ** 0.12) * np.exp(noise)

rows = [f"{c:.6g},{value:.6f},{seed % 2}" for seed, (c, value) in enumerate(zip(C, loss))]
print("flops,loss,seed", *rows, sep="\n")
