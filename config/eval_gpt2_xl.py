# OpenAI's gpt2-xl on OpenWebText: its validation loss. 1558M parameters: n_layer=48, n_head=25, n_embd=1600.
#
#     python train.py config/eval_gpt2_xl.py

init_from = "gpt2-xl"
eval_only = True
batch_size = 8
eval_iters = 500  # many, for a close estimate
wandb_log = False
