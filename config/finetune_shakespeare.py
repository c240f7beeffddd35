# GPT-2's largest finetuned on Shakespeare by its own tokens: nanoGPT's values.
#
#     python data/shakespeare/prepare.py
#     python train.py config/finetune_shakespeare.py
#
# A smaller one (--init_from=gpt2-medium) or fewer positions (--block_size=256) need less memory.

import time

out_dir = "out-shakespeare"
eval_interval = 5
eval_iters = 40
wandb_log = False  # as you like
wandb_project = "shakespeare"
wandb_run_name = "ft-" + str(time.time())

dataset = "shakespeare"
init_from = "gpt2-xl"
always_save_checkpoint = False  # keep the state of the best evaluation

# 1 sequence of 1024 tokens, 32 times: 32,768 tokens per update, of 301,966 in the data
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5  # constant
decay_lr = False
