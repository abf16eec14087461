"""Run by the tests in a process of its own: the rise of the resident set over two real training steps, in bytes.

python -m tests.trainer.memory_of_a_step LAYERS CONFIG.yaml [CONFIG.yaml …]
"""

import gc
import re
import sys
from pathlib import Path

import torch

from tests.trainer.estimated import encoder_config
from trainer.engine.config import Pretraining, load_config
from trainer.engine.estimate import masked_places
from trainer.model.heads import MaskedLanguageModel, masked_loss_sum
from trainer.model.longformer import EncoderConfig


def status(name: str) -> int:
    return int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def train(config: EncoderConfig, training: Pretraining, steps: int) -> None:
    """Steps of two micro-batches, as the engine at ZeRO 0 takes them: gradients stay between passes."""
    model = MaskedLanguageModel(config).train()
    model.encoder.activation_checkpointing = training.activation_checkpointing
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    rows, tokens = training.micro_batch_size, training.sequence_length
    ids = torch.randint(4, config.vocab_size, (rows, tokens))
    places = torch.arange(masked_places(training)).expand(rows, -1)
    seeds = torch.zeros(rows, config.num_hidden_layers, dtype=torch.int64)
    for _ in range(steps):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
                loss = masked_loss_sum(model(ids, places, None, None, seeds), ids.gather(1, places))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny = load_config(Path(sys.argv[2]), (), Pretraining).model_copy(
        update={"sequence_length": 128, "micro_batch_size": 1}
    )
    train(encoder_config(1, hidden_size=32), tiny, 1)  # what libraries take at their first use
    for path in sys.argv[2:]:
        gc.collect()
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        train(encoder_config(int(sys.argv[1])), load_config(Path(path), (), Pretraining), 2)
        print(status("VmHWM") - before)
