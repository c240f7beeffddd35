# OpenAI's gpt2-medium on OpenWebText: its validation loss. 350M parameters: n_layer=24, n_head=16, n_embd=1024.
#
#     python train.py config/eval_gpt2_medium.py

init_from = "gpt2-medium"
eval_only = True
batch_size = 8
eval_iters = 500  # many, for a close estimate
wandb_log = False
