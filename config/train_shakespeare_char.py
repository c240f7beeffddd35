# A miniature character-level GPT on Shakespeare: nanoGPT's settings for its "baby GPT".
# On one GPU this takes minutes; on a CPU shorten it, e.g. --max_iters=20.

out_dir = "out-shakespeare-char"
eval_interval = 250  # often, because 5,000 updates are 82 epochs: it overfits
eval_iters = 200
log_interval = 10
always_save_checkpoint = False  # keep the state of the best evaluation

wandb_project = "shakespeare-char"
wandb_run_name = "mini-gpt"

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256  # context of up to 256 characters

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

learning_rate = 1e-3  # small models take a higher one
min_lr_frac = 0.1
beta2 = 0.99  # few tokens per update, so a longer memory
warmup_iters = 100
max_iters = 5000
