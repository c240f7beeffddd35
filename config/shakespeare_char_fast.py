# nanoGPT's "baby GPT" with LLaMA's parts and Muon, for one GPU.
#
#     python train.py config/shakespeare_char_fast.py
#
# Muon's LR and the ratio to AdamW's are those of studies/cpu_fast.toml at width 128 (the spectral
# factor carries them over widths); the longer memory and the decay suit more updates. Not yet run on
# a GPU.

out_dir = "out-shakespeare-char-fast"
dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
use_rmsnorm = True
use_rope = True
use_swiglu = True
use_qk_norm = True
tie_embeddings = False

optimizer = "muon"
muon_lr = 0.02
muon_weight_decay = 0.1
learning_rate = 8e-3  # of embeddings, norms and, times head_lr_mult, the head
head_lr_mult = 0.3
weight_decay = 0.0

max_iters = 1000  # 16 epochs
lr_schedule = "linear"
warmup_iters = 10
min_lr = 0.0

eval_interval = 100
eval_iters = 50
log_interval = 10
always_save_checkpoint = False
compile = True
cuda_graphs = True  # a small model is bound by launches
