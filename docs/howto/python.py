# python.py
import nanoscale as ns

ns.prepare("synthetic")  # or prepare("text", input="my.txt", out="data/mine")
base = {
    "dataset": "synthetic",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 32,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_iters": 100,
    "warmup_frac": 0.05,
    "min_lr_frac": 0.1,
    "eval_interval": 0,
    "final_eval_tokens": 32768,
}
runner = ns.ExperimentRunner(base_config_path=None, output_root="experiments_out")
runner.run_grid("rates", base, {"learning_rate": [1e-2, 3e-2, 1e-1], "seed": [1, 2]})

# Here, or in another session, or on another day:
study = ns.open_study("rates")
print(study)
print(study.frame()[["learning_rate", "seed", "state", "val_loss"]].head(2))

answer = ns.answer("rates")
print(answer.text)
best = answer.numbers["settings"][0]
print(best["values"], best["ci95"], answer.verdict or "no verdict")
