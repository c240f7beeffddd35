# One small GPT: seconds on a CPU. Copy it, edit it: nanoscale init DIR.
#
#     nanoscale data prepare pysource
#     nanoscale train starter
#
# `nanoscale train --help` lists every key, `nanoscale params starter` says how big it is.

out_dir = "out-starter"

# The Python files of this installation, byte by byte: nothing to download. Your own text:
#     nanoscale data prepare text --input FILE_OR_FOLDER --out data/mine
# and here: dataset = "mine"
dataset = "pysource"
batch_size = 16
block_size = 128
gradient_accumulation_steps = 1

n_layer = 3
n_embd = 48
n_head = 2
use_rmsnorm = True
use_rope = True
use_swiglu = True

optimizer = "muon"
muon_lr = 0.04  # of the matrices inside the blocks
learning_rate = 0.02  # of embeddings and norms, by AdamW
lr_schedule = "linear"
warmup_frac = 0.02
min_lr_frac = 0.0

max_iters = 500
eval_interval = 100
eval_iters = 8
log_interval = 20
final_eval_tokens = 524288
