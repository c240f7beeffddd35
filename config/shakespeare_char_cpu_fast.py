# nanoGPT's final loss on its CPU recipe, on a CPU, in a tenth of its time.
#
#     python train.py config/shakespeare_char_cpu_fast.py
#
# The same data, context and number of parameters (0.8M). LLaMA's parts, Muon, a head of its own and
# a linear decay from the start take 180 updates where nanoGPT takes 2,000. The values come from
# studies/cpu_fast.toml; its table and the timing against nanoGPT are in docs/results/speed.

out_dir = "out-shakespeare-char-cpu-fast"
dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 12
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0
use_rmsnorm = True
use_rope = True
use_swiglu = True
use_qk_norm = True
tie_embeddings = False

optimizer = "muon"
muon_lr = 0.024
muon_momentum = 0.85  # few updates, so a short memory
muon_weight_decay = 0.0
learning_rate = 1.6e-2  # of embeddings and norms
head_lr_mult = 0.3
weight_decay = 0.0

max_iters = 180
lr_schedule = "linear"
warmup_iters = 5
min_lr = 0.0

eval_interval = 0  # at the end alone: 20 batches, then the whole validation split
eval_iters = 20
log_interval = 10
compile = False
