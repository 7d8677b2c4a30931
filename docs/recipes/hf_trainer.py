"""Train a small character-level GPT-2 from scratch with the Hugging Face Trainer; needs no network.

Needs transformers and accelerate. A callback reports losses, and saves a checkpoint when the job is asked to stop.
Alone: python hf_trainer.py. In a study: hf_trainer.yaml.
"""

import os
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ablatrix_run import run

LENGTH = 64


class Study(TrainerCallback):
    """Report losses; save and stop when the job is asked to end."""

    def on_log(self, args, state, control, logs=None, **others):
        names = {"loss": "loss", "eval_loss": "val_loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
        known = {names[name]: value for name, value in (logs or {}).items() if name in names}
        if known:
            run.log(state.global_step, **known)

    def on_step_end(self, args, state, control, **others):
        if run.should_stop():
            control.should_save = control.should_training_stop = True


class Characters(torch.utils.data.Dataset):
    """Consecutive pieces of a text, one token per character."""

    def __init__(self, text):
        self.ids = torch.tensor([min(ord(character), 127) for character in text])

    def __len__(self):
        return len(self.ids) // LENGTH

    def __getitem__(self, index):
        piece = self.ids[index * LENGTH : (index + 1) * LENGTH]
        return {"input_ids": piece, "labels": piece}


text = Path(run.get("text", os.__file__)).read_text(encoding="utf-8")
cut = len(text) * 9 // 10
model_config = GPT2Config(
    vocab_size=128,
    n_positions=LENGTH,
    n_layer=2,
    n_head=2,
    n_embd=64,
    bos_token_id=0,
    eos_token_id=0,
    resid_pdrop=run.get("dropout", 0.1),
    embd_pdrop=run.get("dropout", 0.1),
    attn_pdrop=run.get("dropout", 0.1),
)
arguments = TrainingArguments(
    output_dir=run.path("checkpoints"),
    max_steps=run.get("max_steps", 100),
    learning_rate=run.get("learning_rate", 1e-3),
    per_device_train_batch_size=8,
    logging_steps=10,
    eval_strategy="steps",
    eval_steps=50,
    save_steps=50,
    save_total_limit=1,
    seed=run.seed,
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
run.listen()
torch.manual_seed(run.seed)
trainer = Trainer(
    model=GPT2LMHeadModel(model_config),
    args=arguments,
    train_dataset=Characters(text[:cut]),
    eval_dataset=Characters(text[cut:]),
    callbacks=[Study()],
)
last = get_last_checkpoint(arguments.output_dir) if os.path.isdir(arguments.output_dir) else None
trainer.train(resume_from_checkpoint=last)
if run.should_stop():
    run.stop()
