"""The tasks a pretrained model is finetuned on: their files, inputs, losses and official metrics."""
