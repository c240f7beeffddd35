# OpenAI's gpt2-large on OpenWebText: its validation loss. 774M parameters: n_layer=36, n_head=20, n_embd=1280.
#
#     python train.py config/eval_gpt2_large.py

init_from = "gpt2-large"
eval_only = True
batch_size = 8
eval_iters = 500  # many, for a close estimate
wandb_log = False
