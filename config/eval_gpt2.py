# OpenAI's gpt2 on OpenWebText: its validation loss. 124M parameters: n_layer=12, n_head=12, n_embd=768.
#
#     python train.py config/eval_gpt2.py

init_from = "gpt2"
eval_only = True
batch_size = 8
eval_iters = 500  # many, for a close estimate
wandb_log = False
