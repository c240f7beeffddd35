# GPT-2's size on OpenWebText with LLaMA's parts and Muon, for one H100-class GPU or torchrun on more.
#
#     torchrun --standalone --nproc_per_node=8 train.py config/gpt2_124m_fast.py
#
# 2.5B tokens, 20 per parameter. Muon's LR is that of studies/cpu_fast.toml at width 128 (the spectral
# factor carries it over widths). Not yet run on a GPU.

out_dir = "out-gpt2-124m-fast"
dataset = "openwebtext"
gradient_accumulation_steps = 8
batch_size = 64
block_size = 1024

n_layer = 12
n_head = 12
n_embd = 768
vocab_size = 50304  # a multiple of 64: faster products
dropout = 0.0
use_rmsnorm = True
use_rope = True
use_swiglu = True
use_qk_norm = True

optimizer = "muon"
muon_lr = 0.02
muon_weight_decay = 0.1
learning_rate = 3e-3
weight_decay = 0.0

tokens_per_param = 20
lr_schedule = "wsd"
cooldown_frac = 0.4
warmup_frac = 0.01
min_lr = 0.0

eval_interval = 250
eval_iters = 20
log_interval = 10
compile = True
loss_chunk = 16384  # full logits of a micro-batch would be 6.6 GB in bfloat16
